"""What sampling, evaluation and several processes cost on this machine: time, memory and arithmetic rate, side by side."""
