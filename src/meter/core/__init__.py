"""What was used, without I/O: record layout, time windows. May be imported by everything."""
