//! Small decoders that collect what is wrong and go on.

use super::Diagnostic;
use super::tree::{Key, Kind, Node, Place};
use crate::id::InvalidId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Collected mistakes.
pub struct Problems {
    files: Vec<String>,
    found: Vec<Diagnostic>,
    hidden: Vec<(String, String)>,
}

impl Problems {
    pub fn new(files: Vec<String>) -> Self {
        Self { files, found: Vec::new(), hidden: Vec::new() }
    }

    pub fn add(&mut self, place: Place, message: &str, hint: Option<String>) {
        let file = self.files.get(place.file).cloned().unwrap_or_default();
        self.found.push(Diagnostic { file, line: place.line, column: place.column, message: message.to_owned(), hint });
    }

    pub fn invalid(&mut self, place: Place, error: &InvalidId) {
        self.add(place, &format!("`{}` is not a valid {}", error.value, error.kind), Some(error.rule.to_owned()));
    }

    /// Keeps the value of variable `name` out of every message.
    pub fn hide(&mut self, name: &str, value: &str) {
        if value.len() > 2 {
            self.hidden.push((format!("${{{name}}}"), value.to_owned()));
        }
    }

    fn redact(&self, text: &str) -> String {
        self.hidden.iter().fold(text.to_owned(), |text, (name, value)| text.replace(value, name))
    }

    /// All of them, sorted by place, none twice.
    pub fn finish(mut self) -> Result<(), Vec<Diagnostic>> {
        let mut found = std::mem::take(&mut self.found);
        for diagnostic in &mut found {
            diagnostic.message = self.redact(&diagnostic.message);
            diagnostic.hint = diagnostic.hint.as_ref().map(|h| self.redact(h));
        }
        self.found = found;
        self.found.sort();
        self.found.dedup();
        if self.found.is_empty() { Ok(()) } else { Err(self.found) }
    }
}

/// A map with known keys, of which each is taken once.
pub struct Fields<'a> {
    pub place: Place,
    entries: Vec<(&'a Key, &'a Node)>,
}

impl<'a> Fields<'a> {
    /// Opens a map; says what is unknown in it. `None` when it is no map.
    pub fn open(node: &'a Node, what: &str, known: &[&str], problems: &mut Problems) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            problems.add(node.place, &format!("{what} must be a map, this is {}", node.describe()), None);
            return None;
        };
        for (key, _) in entries {
            if !known.contains(&key.name.as_str()) && !key.name.starts_with("x-") {
                problems.add(key.place, &format!("unknown field `{}`", key.name), Some(suggest(&key.name, known)));
            }
        }
        Some(Self { place: node.place, entries: entries.iter().map(|(k, v)| (k, v)).collect() })
    }

    /// The value of a key; absent and `null` are the same.
    pub fn get(&self, name: &str) -> Option<&'a Node> {
        let found = self.entries.iter().find(|(k, _)| k.name == name)?;
        (!matches!(found.1.kind, Kind::Null)).then_some(found.1)
    }

    pub fn string(&self, name: &str, problems: &mut Problems) -> Option<String> {
        string(self.get(name)?, name, problems)
    }

    pub fn bool(&self, name: &str, problems: &mut Problems) -> Option<bool> {
        let node = self.get(name)?;
        match &node.kind {
            Kind::Plain(text) | Kind::Filled(text) if text == "true" => Some(true),
            Kind::Plain(text) | Kind::Filled(text) if text == "false" => Some(false),
            _ => wrong(node, name, "true or false", problems),
        }
    }

    pub fn number(&self, name: &str, least: u32, most: u32, problems: &mut Problems) -> Option<u32> {
        let node = self.get(name)?;
        let (Kind::Plain(text) | Kind::Filled(text)) = &node.kind else { return wrong(node, name, "a number", problems) };
        match text.parse::<i64>() {
            Ok(n) if (i64::from(least)..=i64::from(most)).contains(&n) => u32::try_from(n).ok(),
            Ok(n) => {
                problems.add(node.place, &format!("`{name}` must be {least} to {most}, this is {n}"), None);
                None
            }
            Err(_) => wrong(node, name, "a number", problems),
        }
    }

    pub fn port(&self, name: &str, problems: &mut Problems) -> Option<u16> {
        self.number(name, 1, 65535, problems).and_then(|n| u16::try_from(n).ok())
    }

    pub fn duration(&self, name: &str, problems: &mut Problems) -> Option<Duration> {
        let node = self.get(name)?;
        let (Kind::Plain(text) | Kind::Text(text) | Kind::Filled(text)) = &node.kind else {
            return wrong(node, name, "a duration", problems);
        };
        let duration = duration(text);
        if duration.is_none() {
            let hint = "write a number and a unit: 500ms, 5s, 2m, 1h".to_owned();
            problems.add(node.place, &format!("`{name}` is not a duration"), Some(hint));
        }
        duration
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let text = self.string(name, problems)?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let place = self.get(name).map_or(self.place, |n| n.place);
            problems.add(place, &format!("`{name}` cannot be `{text}`"), Some(suggest(&text, &words)));
        }
        found
    }

    /// A list; a single value stands for a list of one.
    pub fn list(&self, name: &str) -> &'a [Node] {
        match self.get(name) {
            Some(Node { kind: Kind::List(items), .. }) => items,
            Some(one) => std::slice::from_ref(one),
            None => &[],
        }
    }

    pub fn strings(&self, name: &str, problems: &mut Problems) -> Vec<String> {
        self.list(name).iter().filter_map(|n| string(n, name, problems)).collect()
    }

    /// A list of words where numbers and truth values are taken as they are written.
    pub fn words(&self, name: &str, problems: &mut Problems) -> Vec<String> {
        self.list(name).iter().filter_map(|n| scalar(n, name, problems)).collect()
    }

    /// Keys with scalar values.
    pub fn scalars(&self, name: &str, problems: &mut Problems) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (key, value) in self.entries_of(name, problems) {
            if let Some(text) = scalar(value, &key.name, problems) {
                map.insert(key.name.clone(), text);
            }
        }
        map
    }

    /// The entries of a map with keys of the user's own.
    pub fn entries_of(&self, name: &str, problems: &mut Problems) -> &'a [(Key, Node)] {
        match self.get(name) {
            Some(Node { kind: Kind::Map(entries), .. }) => entries,
            Some(node) => {
                wrong::<()>(node, name, "a map", problems);
                &[]
            }
            None => &[],
        }
    }
}

/// Text; a plain number or truth value is a mistake that quotes mend.
pub fn string(node: &Node, name: &str, problems: &mut Problems) -> Option<String> {
    match &node.kind {
        Kind::Text(text) | Kind::Filled(text) => Some(text.clone()),
        Kind::Plain(text) if text != "true" && text != "false" && text.parse::<f64>().is_err() => Some(text.clone()),
        Kind::Plain(_) => {
            let hint = Some("put it in quotes".to_owned());
            problems.add(node.place, &format!("`{name}` must be text, this is {}", node.describe()), hint);
            None
        }
        _ => wrong(node, name, "text", problems),
    }
}

/// Any scalar as its text.
pub fn scalar(node: &Node, name: &str, problems: &mut Problems) -> Option<String> {
    match &node.kind {
        Kind::Text(text) | Kind::Plain(text) | Kind::Filled(text) => Some(text.clone()),
        Kind::Null => Some(String::new()),
        Kind::List(_) | Kind::Map(_) => wrong(node, name, "text", problems),
    }
}

/// Any value, for templates.
pub fn json(node: &Node) -> serde_json::Value {
    use serde_json::Value;
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Text(text) => Value::String(text.clone()),
        Kind::Plain(text) | Kind::Filled(text) => match text.as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ if text.parse::<i64>().is_ok() => text.parse::<i64>().map_or(Value::Null, Value::from),
            _ => match text.parse::<f64>() {
                Ok(number) if number.is_finite() && text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                    Value::from(number)
                }
                _ => Value::String(text.clone()),
            },
        },
        Kind::List(items) => Value::Array(items.iter().map(json).collect()),
        Kind::Map(entries) => Value::Object(entries.iter().map(|(k, v)| (k.name.clone(), json(v))).collect()),
    }
}

fn wrong<T>(node: &Node, name: &str, wanted: &str, problems: &mut Problems) -> Option<T> {
    problems.add(node.place, &format!("`{name}` must be {wanted}, this is {}", node.describe()), None);
    None
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|n| *n <= 1_000_000_000)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3600)),
        _ => None,
    }
}

/// "did you mean", or all there is.
pub fn suggest(word: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (strsim::damerau_levenshtein(word, k), *k)).min();
    match best {
        Some((distance, best)) if distance <= 2.max(word.len() / 3) => format!("did you mean `{best}`?"),
        _ => format!("known here: {}", known.join(", ")),
    }
}
