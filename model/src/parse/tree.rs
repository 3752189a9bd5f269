//! The tree between YAML and decoding: every key and value knows its place.

/// A place in one of the files, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// 0 is the base, 1 the overlay.
    pub file: u8,
    pub line: u32,
    pub column: u32,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Node {
    pub place: Place,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Null,
    /// Text with a mistake in it that has been told: nobody says more about it.
    Broken,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Debug, Clone)]
pub struct Key {
    pub place: Place,
    pub name: String,
}

/// Text whose type is decided by who reads it.
#[derive(Debug, Clone)]
pub struct Scalar {
    pub text: String,
    /// Without quotes: may be a number or a truth value.
    pub plain: bool,
    /// What stands in the file, when variables were filled in: messages show this, never `text`.
    pub written: Option<Box<str>>,
}

impl Scalar {
    /// Whether it may be read as a number or a truth value: a variable is filled into quotes, too, because a flow map takes
    /// no braces without them.
    pub fn may_be_typed(&self) -> bool {
        self.plain || self.written.is_some()
    }

    /// What a message may print.
    pub fn shown(&self) -> String {
        printable(self.written.as_deref().unwrap_or(&self.text))
    }
}

impl Node {
    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Null | Kind::Broken => "nothing".into(),
            Kind::Scalar(s) if s.written.is_some() => format!("`{}`", s.shown()),
            Kind::Scalar(s) if s.plain && truth(&s.text).is_some() => "true or false".into(),
            Kind::Scalar(s) if s.plain && is_number(&s.text) => "a number".into(),
            Kind::Scalar(_) => "text".into(),
            Kind::List(_) => "a list".into(),
            Kind::Map(_) => "a map".into(),
        }
    }

    /// The scalar, if it is one.
    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.kind {
            Kind::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Nodes and bytes of text in it: what a copy of it costs.
    pub fn cost(&self) -> (usize, usize) {
        let add = |(a, b): (usize, usize), (c, d): (usize, usize)| (a + c, b + d);
        match &self.kind {
            Kind::Null | Kind::Broken => (1, 0),
            Kind::Scalar(s) => (1, s.text.len()),
            Kind::List(items) => items.iter().map(Node::cost).fold((1, 0), add),
            Kind::Map(entries) => entries.iter().map(|(k, v)| add(v.cost(), (1, k.name.len()))).fold((1, 0), add),
        }
    }
}

/// Text for one line of a message: no control characters, no page of it.
pub fn printable(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown = String::new();
    for c in text.chars().take(LONGEST) {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The truth values of YAML 1.2; `yes`, `no`, `on` and `off` are text.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Whole numbers of YAML 1.2: decimal, `0o17`, `0x1f`.
pub fn integer(text: &str) -> Option<i64> {
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok().filter(|_| !octal.starts_with(['+', '-']));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with(['+', '-']));
    }
    text.parse().ok()
}

/// Numbers of YAML 1.2, finite or not.
pub fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let infinite = matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    // Rust also reads `inf`, `infinity` and `nan`, which are words in YAML.
    let begins = unsigned.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
    infinite || integer(text).is_some() || (begins && text.parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_yaml() {
        for number in ["0", "-1", "+7", "0x1F", "0o17", "1.5", ".5", "1.", "1e3", "99999999999999999999", ".inf", "-.INF", ".nan"]
        {
            assert!(is_number(number), "{number}");
        }
        for word in ["", "inf", "nan", "infinity", "1_000", "1.2.3", "0x", "0x-1", "-", "+", ".", "e3", "yes", "12h"] {
            assert!(!is_number(word), "{word}");
        }
        assert_eq!((integer("0x1F"), integer("0o17"), integer("1.0")), (Some(31), Some(15), None));
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(printable("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(printable(&"x".repeat(100)), format!("{}...", "x".repeat(80)));
    }
}
