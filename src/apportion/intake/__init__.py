"""Tasks, pools and bids in, a Market out: floors that fit, guarantees set aside."""
