"""The network: LSTM branches with temporal attention, fusion and head."""
