"""Generated from proto/meter/v1 by proto/generate.py; do not edit."""
