"""What a student is worth: metrics, probes, reports."""
