"""What the replay buffer consists of."""
