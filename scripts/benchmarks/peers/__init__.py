"""Programs that benchmarks compare with. They import nothing of `study`, so that none of its settings reach them."""
