"""What is remembered: a candidate's record, the recommendation for one device, and what their fields may hold."""
