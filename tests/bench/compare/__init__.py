"""What a streamed event, a turn and an open stream cost here, and in what people would pick instead."""
