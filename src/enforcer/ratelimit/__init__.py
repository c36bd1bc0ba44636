"""Generated from proto/enforcer/ratelimit by proto/generate.py; do not edit."""
