//! Counting tests.

use std::ops::AddAssign;

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Not run.
    pub ignored: u64,
}

impl Tally {
    /// One test.
    pub const PASSED: Tally = Tally { passed: 1, failed: 0, ignored: 0 };
    /// One test.
    pub const FAILED: Tally = Tally { passed: 0, failed: 1, ignored: 0 };
    /// One test.
    pub const IGNORED: Tally = Tally { passed: 0, failed: 0, ignored: 1 };

    /// The sum over all lines of the test harness in `output`.
    pub fn of_harness(output: &str) -> Self {
        let mut tally = Tally::default();
        for line in output.lines() {
            let Some(rest) = line.trim().strip_prefix("test result: ") else { continue };
            for part in rest.split([';', '.']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(what)) =
                    (words.next().map(str::parse::<u64>), words.next())
                else {
                    continue;
                };
                match what {
                    "passed" => tally.passed += count,
                    "failed" => tally.failed += count,
                    "ignored" => tally.ignored += count,
                    _ => {}
                }
            }
        }
        tally
    }

    /// The last line of the command.
    pub fn result(&self) -> String {
        let Tally { passed, failed, ignored } = self;
        let verdict = if *failed == 0 { "ok" } else { "FAILED" };
        format!("test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored")
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_harness_are_added_up() {
        let output = "running 2 tests\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
            finished in 0.12s\nnoise\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(Tally::of_harness(output), Tally { passed: 13, failed: 2, ignored: 1 });
    }

    #[test]
    fn the_last_line_says_ok_only_without_failures() {
        let mut tally = Tally { passed: 3, failed: 0, ignored: 1 };
        assert_eq!(tally.result(), "test result: ok. 3 passed; 0 failed; 1 ignored");
        tally += Tally::FAILED;
        assert_eq!(tally.result(), "test result: FAILED. 3 passed; 1 failed; 1 ignored");
    }
}
