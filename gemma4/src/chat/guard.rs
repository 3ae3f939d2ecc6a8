//! Keeps control tokens in text from outside apart from those of the template.
//!
//! Every `<` and `|` in text from outside is replaced before a template sees it by a character for private
//! use that occurs nowhere else. What looks like a control token after that is the template's own. Because
//! each character stands for itself, it does not matter how a template trims, splits or joins the text.

use super::history::{Conversation, each_string_of};
use super::markers::find_token;
use super::{Result, Segment};
use crate::Error;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// The characters that stand in for others are taken from here: the last private-use plane.
const PLANE: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10FFFD}';

/// The stand-ins of one rendering.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    angle: char,
    bar: char,
}

impl Guard {
    /// Chooses stand-ins that neither the conversation nor the template nor its variables contain, and
    /// replaces in the conversation.
    pub fn apply(
        conversation: &mut Conversation,
        template: &str,
        variables: &Map<String, Value>,
    ) -> Result<Guard> {
        let mut used = HashSet::new();
        let mut note = |text: &mut String| used.extend(text.chars().filter(|c| PLANE.contains(c)));
        conversation.each_string(&mut note);
        each_string_of(&mut Value::Object(variables.clone()), &mut note);
        note(&mut template.to_owned());
        let mut free = PLANE.filter(|c| !used.contains(c));
        let (Some(angle), Some(bar)) = (free.next(), free.next()) else {
            return Err(Error::Template("the text uses up the characters for private use".to_owned()));
        };
        conversation.each_string(&mut |text| {
            if text.contains(['<', '|']) {
                *text = text.replace('<', angle.encode_utf8(&mut [0; 4]));
                *text = text.replace('|', bar.encode_utf8(&mut [0; 4]));
            }
        });
        Ok(Guard { angle, bar })
    }

    /// Puts back what was replaced.
    fn restore(self, text: &str) -> String {
        let back = |c| match c {
            c if c == self.angle => '<',
            c if c == self.bar => '|',
            c => c,
        };
        text.chars().map(back).collect()
    }

    /// Cuts a rendering into the template's control tokens and everything else.
    pub fn segments(self, rendered: &str) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut rest = rendered;
        while let Some((start, end)) = find_token(rest) {
            self.push_untrusted(&mut segments, &rest[..start]);
            match segments.last_mut() {
                Some(last) if last.trusted => last.text.push_str(&rest[start..end]),
                _ => segments.push(Segment { text: rest[start..end].to_owned(), trusted: true }),
            }
            rest = &rest[end..];
        }
        self.push_untrusted(&mut segments, rest);
        segments
    }

    /// Adds text, cut in two within everything that has the form of a control token: some tokens are read as
    /// such even where the tokenizer is told not to.
    fn push_untrusted(self, segments: &mut Vec<Segment>, text: &str) {
        let text = self.restore(text);
        let mut rest = text.as_str();
        let mut push = |text: &str| {
            if !text.is_empty() {
                segments.push(Segment { text: text.to_owned(), trusted: false });
            }
        };
        while let Some((start, _)) = find_token(rest) {
            let (before, after) = rest.split_at(start + '<'.len_utf8());
            push(before);
            rest = after;
        }
        push(rest);
    }
}
