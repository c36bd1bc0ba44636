"""Tests, by kind: unit and property, contract, integration, e2e, chaos, browser."""
