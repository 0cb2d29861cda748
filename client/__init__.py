"""The device's side: what it keeps between rounds, what data it sees, and the Flower ClientApp that trains it."""
