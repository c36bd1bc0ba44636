"""Usage records in Kafka. Imported by the composition roots and by `metergate kafka` only."""
