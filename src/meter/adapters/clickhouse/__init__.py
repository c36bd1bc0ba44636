"""ClickHouse, as a server or in this process (chDB). Imported by the composition root only."""
