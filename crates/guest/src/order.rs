//! Visiting 0..n in an order that looks random, every number once, without memory for a list.

/// The order `i -> (start + i * step) mod n`, where `step` shares no divisor with `n`.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    count: u64,
    start: u64,
    step: u64,
}

impl Order {
    /// An order of `count` numbers (below 2^32) chosen by `seed`.
    pub fn new(count: u64, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        if count < 2 {
            return Self { count, start: 0, step: 1 };
        }
        let start = random.u64(..count);
        let mut step = random.u64(1..count);
        while divisor(step, count) != 1 {
            step = step % (count - 1) + 1;
        }
        Self { count, start, step }
    }

    /// The numbers, each once.
    pub fn numbers(self) -> impl Iterator<Item = u64> {
        (0..self.count).scan(self.start, move |at, _| {
            let now = *at;
            *at = (now + self.step) % self.count;
            Some(now)
        })
    }
}

fn divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once() {
        for count in [0, 1, 2, 3, 4, 30, 64, 97, 1000] {
            for seed in 0..20 {
                let mut seen = vec![false; count as usize];
                for number in Order::new(count, seed).numbers() {
                    assert!(!seen[number as usize], "{number} twice of {count}, seed {seed}");
                    seen[number as usize] = true;
                }
                assert!(seen.iter().all(|&seen| seen), "{count}, seed {seed}");
            }
        }
    }

    #[test]
    fn seeds_give_different_orders() {
        let first: Vec<u64> = Order::new(1000, 1).numbers().collect();
        let second: Vec<u64> = Order::new(1000, 2).numbers().collect();
        assert_ne!(first, second);
    }
}
