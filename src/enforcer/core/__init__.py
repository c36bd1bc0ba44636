"""The rules, without I/O, clock or framework. May be imported by everything in `enforcer`."""
