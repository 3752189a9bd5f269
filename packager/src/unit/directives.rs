//! What systemd knows in a service's unit: `directives.txt`, read once.

use std::collections::BTreeMap;
use std::sync::LazyLock;

const TEXT: &str = include_str!("directives.txt");
const TRUE: [&str; 6] = ["yes", "true", "on", "1", "y", "t"];
const FALSE: [&str; 6] = ["no", "false", "off", "0", "n", "f"];

/// All of it, by section and name.
pub static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(TEXT).0);

/// Directives by section.
pub type Sections = BTreeMap<&'static str, BTreeMap<&'static str, Directive>>;

/// The table.
#[derive(Debug, Default)]
pub struct Table {
    /// Directives by section.
    pub sections: Sections,
    sets: BTreeMap<&'static str, Values>,
}

/// One directive.
#[derive(Debug, Clone, Copy)]
pub struct Directive {
    /// Its name.
    pub name: &'static str,
    /// First version that knows it; 0 when that is long ago.
    pub since: u32,
    /// Whether a service would break where it is ignored.
    pub hard: bool,
    /// Gone, renamed or moved to another section.
    pub old: bool,
    set: Option<&'static str>,
}

/// A closed set of values.
#[derive(Debug, Default)]
pub struct Values {
    /// Takes a boolean.
    pub booleans: bool,
    /// The words.
    pub words: Vec<Word>,
}

/// One value.
#[derive(Debug, Clone, Copy)]
pub struct Word {
    /// The word; one that ends with `:` stands for all that begins so.
    pub text: &'static str,
    /// First version that knows it; 0 when that is long ago.
    pub since: u32,
    /// Whether a service would break where it is ignored.
    pub hard: bool,
}

impl Table {
    /// The table in `text`, and the lines that make no sense.
    fn read(text: &'static str) -> (Self, Vec<&'static str>) {
        let (mut table, mut section, mut bad) = (Self::default(), "", Vec::new());
        for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let mut words = line.split(' ');
            let first = words.next().unwrap_or_default();
            if let Some(name) = first.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some(name) = first.strip_prefix('@') {
                let words: Vec<Word> = words.map(word).collect();
                let booleans = words.iter().any(|w| w.text == "bool");
                let words = words.into_iter().filter(|w| w.text != "bool").collect();
                table.sets.insert(name, Values { booleans, words });
            } else {
                let mut directive = Directive { name: first, since: 0, hard: false, old: false, set: None };
                for word in words {
                    match (since(word), word) {
                        (Some((version, hard)), _) => (directive.since, directive.hard) = (version, hard),
                        (None, "old") => directive.old = true,
                        (None, set) if set == "bool" || table.sets.contains_key(set) => directive.set = Some(set),
                        (None, _) => bad.push(line),
                    }
                }
                if table.sections.entry(section).or_default().insert(first, directive).is_some() {
                    bad.push(line);
                }
            }
        }
        table.sets.insert("bool", Values { booleans: true, words: Vec::new() });
        (table, bad)
    }

    /// The directive of that name in that section.
    pub fn get(&self, section: &str, name: &str) -> Option<&Directive> {
        self.sections.get(section)?.get(name)
    }

    /// The values that `directive` takes, when they are a closed set.
    pub fn values(&self, directive: &Directive) -> Option<&Values> {
        self.sets.get(directive.set?)
    }
}

impl Values {
    /// The word that `value` is, or `Ok(None)` for a boolean.
    pub fn find(&self, value: &str) -> Result<Option<&Word>, ()> {
        let is = |w: &&Word| if w.text.ends_with(':') { value.starts_with(w.text) } else { value == w.text };
        match self.words.iter().find(is) {
            Some(word) => Ok(Some(word)),
            None if self.booleans && boolean(value).is_some() => Ok(None),
            None => Err(()),
        }
    }

    /// As people are told them.
    pub fn told(&self) -> Vec<&'static str> {
        let booleans: &[&str] = if self.booleans { &["yes", "no"] } else { &[] };
        booleans.iter().copied().chain(self.words.iter().map(|w| w.text)).collect()
    }
}

/// A boolean, as systemd reads one.
pub fn boolean(value: &str) -> Option<bool> {
    let is = |words: &[&str]| words.iter().any(|w| w.eq_ignore_ascii_case(value));
    if is(&TRUE) { Some(true) } else { is(&FALSE).then_some(false) }
}

/// `253!` is (253, true).
fn since(word: &str) -> Option<(u32, bool)> {
    let number = word.strip_suffix('!').unwrap_or(word);
    number.parse().ok().map(|version| (version, number.len() < word.len()))
}

fn word(text: &'static str) -> Word {
    let parts = text.split_once('/').and_then(|(text, version)| Some((text, since(version)?)));
    let (text, (since, hard)) = parts.unwrap_or((text, (0, false)));
    Word { text, since, hard }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let (table, bad) = Table::read(TEXT);
        assert_eq!(bad, Vec::<&str>::new());
        let count = |section: &str| table.sections[section].len();
        assert_eq!((count("Unit") > 110, count("Service") > 280, count("Install")), (true, true, 6));
        assert!(TEXT.lines().all(|l| !l.ends_with(' ')));
        let since = |name: &str| table.get("Service", name).map(|d| (d.since, d.hard));
        for (name, version, hard) in [
            ("DynamicUser", 235, true),
            ("StateDirectory", 235, true),
            ("RestrictNamespaces", 233, false),
            ("LockPersonality", 235, false),
            ("KeyringMode", 235, false),
            ("ProtectHostname", 242, false),
            ("RestrictSUIDSGID", 242, false),
            ("ProtectKernelLogs", 244, false),
            ("ProtectClock", 245, false),
            ("ProtectProc", 247, false),
            ("ProcSubset", 247, false),
            ("LoadCredential", 247, true),
            ("PrivateIPC", 248, false),
            ("LoadCredentialEncrypted", 250, true),
            ("ExecStart", 0, false),
        ] {
            assert_eq!(since(name), Some((version, hard)), "{name}");
        }
        let set = &table.sets["type"];
        assert_eq!(set.find("notify-reload").map(|w| w.map(|w| (w.since, w.hard))), Ok(Some((253, true))));
        assert_eq!(set.find("exec").map(|w| w.map(|w| w.since)), Ok(Some(240)));
        assert!(set.find("notfy").is_err() && set.find("yes").is_err());
        assert!(table.sets["protectsystem"].find("TRUE").is_ok_and(|w| w.is_none()), "a boolean");
        assert!(table.sets["output"].find("append:/x").is_ok_and(|w| w.is_some_and(|w| w.since == 240)));
    }

    #[test]
    fn a_line_without_sense_is_found() {
        assert_eq!(Table::read("[Unit]\nAfter nonsense\nWants\nWants\n").1, ["After nonsense", "Wants"]);
    }
}
