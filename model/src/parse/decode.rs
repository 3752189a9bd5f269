//! Small decoders that say what is wrong and go on.

use super::problems::Problems;
use super::tree::{Key, Kind, Node, Place, Scalar, integer, is_number, printable, truth};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// The longest duration: anything longer is a slip.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A word of the file.
#[derive(Debug, Clone)]
pub struct Word {
    pub place: Place,
    pub scalar: Scalar,
}

/// A map with known keys.
pub struct Fields<'a> {
    pub place: Place,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// Nothing written, at the place that stands for it.
    pub fn none(place: Place) -> Self {
        Self { place, entries: &[] }
    }

    /// Opens a map; says what is unknown in it. `None` when it is no map.
    pub fn open(node: &'a Node, what: &str, known: &[&str], problems: &mut Problems) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            mistyped(node, what, "a map", problems);
            return None;
        };
        for (key, _) in entries {
            if !known.contains(&key.name.as_str()) && !key.name.starts_with("x-") {
                let word = Scalar { text: key.name.clone(), plain: true, written: None };
                problems.unknown(key.place, format!("unknown field `{}`", word.shown()), &word, known.iter().copied());
            }
        }
        Some(Self { place: node.place, entries })
    }

    /// A key that stands here with a value; absent and `null` are the same.
    pub fn entry(&self, name: &str) -> Option<&'a (Key, Node)> {
        self.entries.iter().find(|(key, value)| key.name == name && !matches!(value.kind, Kind::Null))
    }

    pub fn get(&self, name: &str) -> Option<&'a Node> {
        self.entry(name).map(|(_, value)| value)
    }

    /// Text with something in it.
    pub fn text(&self, name: &str, problems: &mut Problems) -> Option<String> {
        filled(self.get(name)?, name, problems)
    }

    pub fn path(&self, name: &str, problems: &mut Problems) -> Option<PathBuf> {
        self.text(name, problems).map(PathBuf::from)
    }

    pub fn required(&self, name: &str, problems: &mut Problems) -> Option<String> {
        if self.get(name).is_none() {
            problems.add(self.place, format!("missing field `{name}`"), None);
        }
        self.text(name, problems)
    }

    pub fn bool(&self, name: &str, problems: &mut Problems) -> Option<bool> {
        let node = self.get(name)?;
        let value = node.scalar().filter(|s| s.may_be_typed()).and_then(|s| truth(&s.text));
        value.or_else(|| wrong(node, name, "true or false", problems))
    }

    pub fn number(&self, name: &str, least: u32, most: u32, problems: &mut Problems) -> Option<u32> {
        number(self.get(name)?, name, (least, most), None, problems)
    }

    /// The same, and why these are the bounds.
    pub fn number_because(&self, name: &str, bounds: (u32, u32), why: &str, problems: &mut Problems) -> Option<u32> {
        number(self.get(name)?, name, bounds, Some(why), problems)
    }

    pub fn port(&self, name: &str, problems: &mut Problems) -> Option<u16> {
        self.number(name, 1, 65535, problems).and_then(|n| u16::try_from(n).ok())
    }

    /// Ports, each once.
    pub fn ports(&self, name: &str, problems: &mut Problems) -> Vec<u16> {
        let (mut ports, mut seen) = (Vec::new(), BTreeSet::new());
        for node in self.list(name) {
            let port = number(node, name, (1, 65535), None, problems).and_then(|n| u16::try_from(n).ok());
            let (Some(port), Some(scalar)) = (port, node.scalar()) else { continue };
            if seen.insert(port) {
                ports.push(port);
            } else {
                problems.add(node.place, format!("port `{}` stands twice", scalar.shown()), None);
            }
        }
        ports
    }

    pub fn duration(&self, name: &str, least: Duration, problems: &mut Problems) -> Option<Duration> {
        self.duration_within(name, least, (LONGEST, "168h"), problems)
    }

    /// The longest that it may be stands beside its name in messages.
    pub fn duration_within(
        &self,
        name: &str,
        least: Duration,
        (most, called): (Duration, &str),
        problems: &mut Problems,
    ) -> Option<Duration> {
        let node = self.get(name)?;
        let Some(scalar) = node.scalar() else { return wrong(node, name, "a duration", problems) };
        let Some(duration) = duration(&scalar.text) else {
            let hint = "write a whole number and a unit: 500ms, 5s, 2m, 1h".to_owned();
            problems.add(node.place, format!("`{name}` is not a duration"), Some(hint));
            return None;
        };
        if !(least..=most).contains(&duration) {
            let message = format!("`{name}` must be {least:?} to {called}, this is `{}`", scalar.shown());
            problems.add(node.place, message, None);
            return None;
        }
        Some(duration)
    }

    /// One of several words. `Err` when it stands there but is none of them.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], problems: &mut Problems) -> Result<Option<T>, ()> {
        let Some(node) = self.get(name) else { return Ok(None) };
        let word = string(node, name, problems).ok_or(())?;
        let found = choices.iter().find(|(choice, _)| *choice == word.text).map(|(_, value)| *value);
        if found.is_none() {
            let message = format!("`{name}` cannot be `{}`", word.shown());
            problems.unknown(node.place, message, word, choices.iter().map(|(choice, _)| *choice));
            return Err(());
        }
        Ok(found)
    }

    /// A list; a single value stands for a list of one.
    pub fn list(&self, name: &str) -> &'a [Node] {
        match self.get(name) {
            Some(Node { kind: Kind::List(items), .. }) => items,
            Some(one) => std::slice::from_ref(one),
            None => &[],
        }
    }

    /// A list of texts with something in them.
    pub fn texts(&self, name: &str, problems: &mut Problems) -> Vec<String> {
        self.list(name).iter().filter_map(|n| filled(n, name, problems)).collect()
    }

    /// Names that are looked up later.
    pub fn names(&self, name: &str, problems: &mut Problems) -> Vec<Word> {
        let word = |n: &Node| Some(Word { place: n.place, scalar: string(n, name, problems)?.clone() });
        self.list(name).iter().filter_map(word).collect()
    }

    /// A list where numbers and truth values are taken as they are written.
    pub fn words(&self, name: &str, problems: &mut Problems) -> Vec<String> {
        self.list(name).iter().filter_map(|n| scalar(n, name, problems)).collect()
    }

    /// Keys of the user's own with scalar values.
    pub fn scalars(&self, name: &str, problems: &mut Problems) -> BTreeMap<String, String> {
        let entries = self.entries_of(name, problems).iter();
        entries.filter_map(|(k, v)| Some((k.name.clone(), scalar(v, &printable(&k.name), problems)?))).collect()
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
pub fn string<'a>(node: &'a Node, name: &str, problems: &mut Problems) -> Option<&'a Scalar> {
    let Some(scalar) = node.scalar() else { return wrong(node, name, "text", problems) };
    if scalar.plain && scalar.written.is_none() && (truth(&scalar.text).is_some() || is_number(&scalar.text)) {
        let message = format!("`{name}` must be text, this is {}", node.describe());
        problems.add(node.place, message, Some("put it in quotes".to_owned()));
        return None;
    }
    Some(scalar)
}

/// A whole number within bounds.
fn number(node: &Node, name: &str, (least, most): (u32, u32), hint: Option<&str>, problems: &mut Problems) -> Option<u32> {
    let Some(scalar) = node.scalar().filter(|s| s.may_be_typed() && is_number(&s.text)) else {
        return wrong(node, name, "a number", problems);
    };
    let value = integer(&scalar.text).and_then(|n| u32::try_from(n).ok()).filter(|n| (least..=most).contains(n));
    if value.is_none() {
        let message = format!("`{name}` must be a whole number from {least} to {most}, this is `{}`", scalar.shown());
        problems.add(node.place, message, hint.map(str::to_owned));
    }
    value
}

fn filled(node: &Node, name: &str, problems: &mut Problems) -> Option<String> {
    let scalar = string(node, name, problems)?;
    if scalar.text.trim().is_empty() {
        problems.add(node.place, format!("`{name}` must not be empty"), None);
        return None;
    }
    Some(scalar.text.clone())
}

/// Any scalar as its text.
fn scalar(node: &Node, name: &str, problems: &mut Problems) -> Option<String> {
    match &node.kind {
        Kind::Scalar(scalar) => Some(scalar.text.clone()),
        Kind::Null => {
            let hint = Some("write `\"\"` for an empty text".to_owned());
            problems.add(node.place, format!("`{name}` must be text, this is nothing"), hint);
            None
        }
        Kind::List(_) | Kind::Map(_) | Kind::Broken => wrong(node, name, "text", problems),
    }
}

/// Any value, for templates.
pub fn json(node: &Node) -> serde_json::Value {
    use serde_json::Value;
    match &node.kind {
        Kind::Null | Kind::Broken => Value::Null,
        Kind::Scalar(s) if s.plain => typed(&s.text),
        Kind::Scalar(s) => Value::String(s.text.clone()),
        Kind::List(items) => Value::Array(items.iter().map(json).collect()),
        Kind::Map(entries) => Value::Object(entries.iter().map(|(k, v)| (k.name.clone(), json(v))).collect()),
    }
}

/// A plain scalar. Numbers that JSON has no form for (`.inf`, more digits than 64 bits hold) stay text.
fn typed(text: &str) -> serde_json::Value {
    let number = || match integer(text) {
        Some(whole) => Some(whole.into()),
        None if is_number(text) && text.contains(['.', 'e', 'E']) => {
            text.parse().ok().and_then(serde_json::Number::from_f64).map(serde_json::Value::Number)
        }
        None => None,
    };
    truth(text).map(Into::into).or_else(number).unwrap_or_else(|| text.into())
}

pub fn wrong<T>(node: &Node, name: &str, wanted: &str, problems: &mut Problems) -> Option<T> {
    mistyped(node, &format!("`{name}`"), wanted, problems);
    None
}

fn mistyped(node: &Node, what: &str, wanted: &str, problems: &mut Problems) {
    if !matches!(node.kind, Kind::Broken) {
        problems.add(node.place, format!("{what} must be {wanted}, this is {}", node.describe()), None);
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}
