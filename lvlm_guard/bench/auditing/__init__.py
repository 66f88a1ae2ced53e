"""What a suite gives away without its pictures: balances, habits and blind rules, and the errors that they explain."""
