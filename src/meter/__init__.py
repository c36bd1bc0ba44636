"""What was used: records, rollups and reports. Never imports `enforcer`."""
