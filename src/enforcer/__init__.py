"""What is allowed: entitlements, decisions and the services that answer checks. May import `meter`."""
