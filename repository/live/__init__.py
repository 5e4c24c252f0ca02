"""The live tree: the last committed root plus an overlay of what changed since. Synchronous."""
