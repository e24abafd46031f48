"""Whether a model predicts well and keeps what it promises."""
