"""Work in other processes, on this machine or others: what they need, what they tell, and Ray, which starts them."""
