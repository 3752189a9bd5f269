//! What is wrong with the files, collected.

use super::Diagnostic;
use super::tree::{Place, Scalar, printable};
use crate::id::InvalidId;

/// Most mistakes that are told; nobody reads more, and hostile files have a hundred thousand.
const MOST: usize = 1000;
/// Most words compared to guess what was meant, in all.
const MOST_COMPARISONS: usize = 20_000;
/// Longest word that is compared: the distance takes time and memory with the square of it.
const LONGEST_WORD: usize = 64;
/// Most known words that a hint lists.
const MOST_LISTED: usize = 20;

/// Collected mistakes.
pub struct Problems {
    files: Vec<String>,
    found: Vec<(Place, String, Option<String>)>,
    comparisons: usize,
}

impl Problems {
    /// `files` are their names, by the number that a [`Place`] carries.
    pub fn new(files: Vec<String>) -> Self {
        Self { files, found: Vec::new(), comparisons: 0 }
    }

    pub fn add(&mut self, place: Place, message: impl Into<String>, hint: Option<String>) {
        if !self.is_full() {
            self.found.push((place, message.into(), hint));
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= MOST
    }

    /// A name or identifier that breaks its rule.
    pub fn invalid(&mut self, place: Place, shown: &str, error: &InvalidId) {
        self.add(place, format!("`{shown}` is not a valid {}", error.kind), Some(error.rule.to_owned()));
    }

    /// A word that is none of the known ones, with a hint at what may be meant.
    pub fn unknown<'k, K>(&mut self, place: Place, message: String, word: &Scalar, known: K)
    where
        K: Iterator<Item = &'k str> + Clone,
    {
        if self.is_full() {
            return;
        }
        let hint = match self.nearest(word, known.clone()) {
            Some(best) => format!("did you mean `{}`?", printable(best)),
            None => format!("known here: {}", listed(known)),
        };
        self.add(place, message, Some(hint));
    }

    /// The known word that is probably meant. Nothing for what a variable says: the answer would tell its value.
    pub fn nearest<'k>(&mut self, word: &Scalar, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
        if word.written.is_some() || self.is_full() || self.comparisons >= MOST_COMPARISONS {
            return None;
        }
        let text = word.text.as_str();
        let most = (text.len() / 3).max(1);
        let close = known.filter(|k| text.len() <= LONGEST_WORD && k.len().abs_diff(text.len()) <= most);
        let mut best: Option<(usize, &str)> = None;
        for candidate in close {
            if self.comparisons >= MOST_COMPARISONS {
                break;
            }
            self.comparisons += 1;
            let distance = strsim::osa_distance(text, candidate);
            if distance <= most && distance < text.len() && best.is_none_or(|(d, b)| (distance, candidate) < (d, b)) {
                best = Some((distance, candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All of them by place, the base before its overlay, none twice.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort();
        self.found.dedup();
        let name = |place: &Place| self.files.get(usize::from(place.file)).cloned().unwrap_or_default();
        let told = |(place, message, hint): &(Place, String, Option<String>)| Diagnostic {
            file: name(place),
            line: usize::try_from(place.line).unwrap_or(usize::MAX),
            column: usize::try_from(place.column).unwrap_or(usize::MAX),
            message: message.clone(),
            hint: hint.clone(),
        };
        self.found.iter().map(told).collect()
    }
}

fn listed<'k>(known: impl Iterator<Item = &'k str> + Clone) -> String {
    let mut text = known.clone().take(MOST_LISTED).map(printable).collect::<Vec<_>>().join(", ");
    if known.clone().nth(MOST_LISTED).is_some() {
        text.push_str(&format!(" and {} more", known.skip(MOST_LISTED).count()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Scalar {
        Scalar { text: text.into(), plain: true, written: None }
    }

    #[test]
    fn guesses_are_near_or_not_made() {
        let mut problems = Problems::new(Vec::new());
        let mut guess = |text: &str, known: &[&'static str]| problems.nearest(&word(text), known.iter().copied());
        assert_eq!(guess("hots", &["hosts", "vars"]), Some("hosts"));
        assert_eq!(guess("lifecylce", &["lifecycle"]), Some("lifecycle"));
        assert_eq!(guess("db", &["api", "web", "a"]), None);
        assert_eq!(guess("x", &["a"]), None);
        let filled = Scalar { written: Some("${A}".into()), ..word("hots") };
        assert_eq!(problems.nearest(&filled, ["hosts"].into_iter()), None);
    }
}
