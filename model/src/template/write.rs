//! Values as text of some language, so that a reader of that language gets back exactly the value.
//!
//! Every form is one line where the language has such a form: then no value adds a line.

use serde_json::Value;
use std::fmt::Write;

/// Why a value cannot be written; reads on behind its path.
pub(super) type Refused = &'static str;

/// Control characters, and those that turn around or hide what a reader of the file sees.
pub(super) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A TOML value in one line: basic strings, inline tables.
pub(super) fn toml(value: &Value) -> Result<String, Refused> {
    let mut out = String::new();
    toml_into(value, &mut out)?;
    Ok(out)
}

fn toml_into(value: &Value, out: &mut String) -> Result<(), Refused> {
    match value {
        Value::Null => return Err("is or has null in it, which TOML cannot say"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => {
            if n.as_i64().is_none() && n.is_u64() {
                return Err("has a number that is too large for TOML");
            }
            let _ = write!(out, "{n}");
        }
        Value::String(s) => toml_string(s, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                toml_into(item, out)?;
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (index, (key, item)) in map.iter().enumerate() {
                out.push_str(if index == 0 { " " } else { ", " });
                if !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
                    out.push_str(key);
                } else {
                    toml_string(key, out);
                }
                out.push_str(" = ");
                toml_into(item, out)?;
            }
            out.push_str(if map.is_empty() { "}" } else { " }" });
        }
    }
    Ok(())
}

fn toml_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_hidden(c) => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// JSON in one line.
pub(super) fn json(value: &Value) -> String {
    let mut out = String::new();
    // What is hidden stands only within strings; most of it serde_json escapes already.
    for c in value.to_string().chars() {
        if is_hidden(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// One word for a POSIX shell.
pub(super) fn sh(text: &str) -> Result<String, Refused> {
    if text.contains('\0') {
        return Err("has a NUL character, which no shell can carry");
    }
    Ok(crate::sh::quote(text))
}

/// How a directive of a unit reads what is behind its `=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directive {
    /// `Exec...=`: words with quotes, specifiers and variables.
    Exec,
    /// Words with quotes and specifiers; `$` is itself.
    Words,
    /// The line to its end; quotes are themselves, specifiers are not.
    Line,
}

/// A value in a unit (systemd.syntax(7), systemd.service(5) "Command lines").
pub(super) fn unit(text: &str, directive: Directive) -> Result<String, Refused> {
    if text.chars().any(char::is_control) {
        return Err("has a control character, which a unit cannot carry");
    }
    if directive == Directive::Line {
        if text.contains('\\') || text.trim() != text {
            return Err("has a backslash or blanks at an end, which this directive cannot carry");
        }
        return Ok(text.replace('%', "%%"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@,+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            '$' if directive == Directive::Exec => out.push_str("$$"),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(out)
}

/// One word of a command line in a unit: specifiers and variables are taken literally.
///
/// # Errors
/// What of it no unit can carry, reading on behind its name.
pub fn unit_word(word: &str) -> Result<String, &'static str> {
    unit(word, Directive::Exec)
}

/// A value in the form of systemd's `EnvironmentFile=` (systemd.exec(5)): double quotes, backslash escapes.
///
/// # Errors
/// What of it no environment can carry, reading on behind its name.
pub fn env_value(text: &str) -> Result<String, &'static str> {
    if text.contains('\0') {
        return Err("has a NUL character, which no environment can carry");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '`' | '$') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    Ok(out)
}
