//! Stop strings over a stream of text.

/// Lets text through until a stop string appears, however it is cut into pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    /// Text held back because a stop string may begin in it.
    held: String,
}

impl StopFilter {
    pub fn new(stops: &[String]) -> StopFilter {
        StopFilter { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text; returns what can be shown, and the stop string if one is complete.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|&(at, stop)| (at, std::cmp::Reverse(stop.len())));
        if let Some((at, stop)) = found {
            let stop = stop.clone();
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, Some(stop));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What was held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.as_bytes().ends_with(&stop.as_bytes()[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut filter = StopFilter::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut shown = String::new();
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            shown += &text;
            if stop.is_some() {
                return (shown, stop);
            }
        }
        shown += &filter.finish();
        (shown, None)
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_a_false_start_is_shown() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["a E", "N", "d b"]), ("a ENd b".into(), None));
        assert_eq!(run(&["END"], &["a EEN", "D"]), ("a E".into(), Some("END".into())));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some("é!".into())));
        assert_eq!(run(&[""], &["all"]), ("all".into(), None));
        assert_eq!(run(&["b", "ab"], &["xab"]), ("x".into(), Some("ab".into())));
    }

    proptest! {
        #[test]
        fn equals_a_search_in_the_whole_text(
            text in "[ab]{0,40}", stop in "[ab]{1,4}", cuts in proptest::collection::vec(0usize..40, 0..8)
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let (shown, found) = run(&[&stop], &pieces);
            match text.find(&stop) {
                Some(at) => { prop_assert_eq!(shown, &text[..at]); prop_assert!(found.is_some()); }
                None => { prop_assert_eq!(shown, text); prop_assert!(found.is_none()); }
            }
        }
    }
}
