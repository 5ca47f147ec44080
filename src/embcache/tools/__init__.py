"""What works on whole spaces."""
