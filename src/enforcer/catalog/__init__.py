"""The catalog file: definitions declared in YAML, validated as a whole. Imported by ports, adapters and transport."""
