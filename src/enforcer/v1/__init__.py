"""Generated from proto/enforcer/v1 by proto/generate.py; do not edit."""
