//! The table of results.

/// Counts and prints.
#[derive(Default)]
pub struct Report {
    /// Checks that held.
    pub passed: usize,
    /// Checks that did not.
    pub failed: Vec<String>,
    /// Print only failures and summaries.
    pub quiet: bool,
}

impl Report {
    /// One check.
    pub fn line(&mut self, what: &str, detail: &str, ok: bool) {
        if !ok || !self.quiet {
            println!("{} {what:<64} {detail}", if ok { "ok  " } else { "FAIL" });
        }
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(what.to_string());
        }
    }

    /// The end of the table; whether everything held.
    pub fn finish(&self) -> bool {
        println!("kernels: {} passed, {} failed", self.passed, self.failed.len());
        self.failed.is_empty()
    }
}
