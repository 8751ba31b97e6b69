"""What a frozen or fine-tuned backbone is worth: kNN, linear probe, fine-tuning."""
