//! What is within a tag: paths, literals, helpers with their values.

use super::scan::{Tag, TagKind};
use super::{Spot, TemplateProblem};
use serde_json::Value;

/// Deepest nesting of helpers within a tag: whoever walks over an expression recurses no deeper.
const DEEPEST: usize = 32;

#[derive(Debug)]
pub(super) enum Expr {
    Path(Path),
    Literal(Value, Spot),
    Call { helper: Helper, args: Vec<Expr>, at: Spot },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    pub raw: String,
    pub at: Spot,
    pub start: Start,
    pub keys: Vec<String>,
}

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// A plain name: may be one behind `as |...|`.
    Name,
    /// `this`, or that many `../`.
    Here(usize),
    /// `@root`
    Root,
    /// `@index` and its kind, that many `../` up; the name is the only key.
    Local(usize),
}

/// Everything that can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Helper {
    Toml,
    Json,
    Sh,
    Unit,
    Env,
    Eq,
    Ne,
    And,
    Or,
    Not,
    Default,
}

/// Name, helper, fewest and most values.
const HELPERS: &[(&str, Helper, usize, usize)] = &[
    ("toml", Helper::Toml, 1, 1),
    ("json", Helper::Json, 1, 1),
    ("sh", Helper::Sh, 1, 1),
    ("unit", Helper::Unit, 1, 1),
    ("env", Helper::Env, 1, 1),
    ("eq", Helper::Eq, 2, 2),
    ("ne", Helper::Ne, 2, 2),
    ("and", Helper::And, 2, 8),
    ("or", Helper::Or, 2, 8),
    ("not", Helper::Not, 1, 1),
    ("default", Helper::Default, 2, 2),
];

impl Helper {
    /// Whether it writes text with quotes of its own.
    pub fn quotes(self) -> bool {
        matches!(self, Helper::Toml | Helper::Json | Helper::Sh | Helper::Unit | Helper::Env)
    }

    pub fn name(self) -> &'static str {
        HELPERS.iter().find(|h| h.1 == self).map_or("", |h| h.0)
    }
}

/// Whether a name is one of a helper.
pub(super) fn is_helper(name: &str) -> bool {
    HELPERS.iter().any(|h| h.0 == name)
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Literal(Value),
    Sign(char),
}

/// What one tag says: `path`, `helper values`, and the names behind `as`.
pub(super) fn expression(tag: &Tag, inner: &str) -> Result<(Expr, Vec<String>), TemplateProblem> {
    let offset = tag.inner.len().saturating_sub(inner.len());
    let mut tokens = tokens(tag, inner, offset)?;
    let names = names(tag, &mut tokens)?;
    let mut reader = Reader { tag, tokens: tokens.into_iter().peekable() };
    let bare = tag.kind != TagKind::Value;
    let expr = if bare { reader.argument(0)? } else { reader.call(0)? };
    match reader.tokens.next() {
        None => Ok((expr, names)),
        Some((token, at)) => {
            Err(at.problem(&shown(&token), "is one value too many", "group a helper and its values: `(eq a b)`"))
        }
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(word) => word.clone(),
        Token::Literal(value) => value.to_string(),
        Token::Sign(c) => c.to_string(),
    }
}

type Tokens = Vec<(Token, Spot)>;

fn tokens(tag: &Tag, inner: &str, offset: usize) -> Result<Tokens, TemplateProblem> {
    let mut tokens = Vec::new();
    let mut spot = tag.inner_at;
    let step = |spot: &mut Spot, text: &str| {
        for c in text.chars() {
            *spot = if c == '\n' { Spot { line: spot.line + 1, column: 1 } } else { Spot { column: spot.column + 1, ..*spot } };
        }
    };
    step(&mut spot, &tag.inner[..offset]);
    let mut rest = inner;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            ' ' | '\t' | '\r' | '\n' => c.len_utf8(),
            '(' | ')' | '|' | '=' => {
                tokens.push((Token::Sign(c), spot));
                c.len_utf8()
            }
            '"' | '\'' => {
                let length = string_length(rest);
                let Some(value) = string(&rest[..length], c) else {
                    return Err(spot.problem(&rest[..length], "is not a string", "strings are written as in JSON"));
                };
                tokens.push((Token::Literal(Value::String(value)), spot));
                length
            }
            _ => {
                let length = word_length(rest);
                tokens.push((word(&rest[..length]), spot));
                length
            }
        };
        step(&mut spot, &rest[..length]);
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn string_length(text: &str) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if Some(c) == quote => return index + 1,
            _ => {}
        }
    }
    text.len()
}

fn string(text: &str, quote: char) -> Option<String> {
    if quote == '"' {
        return serde_json::from_str(text).ok();
    }
    let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
    serde_json::from_str(&format!("\"{}\"", inner.replace("\\'", "'").replace('"', "\\\""))).ok()
}

fn word_length(text: &str) -> usize {
    let mut inside = false;
    for (index, c) in text.char_indices() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            ' ' | '\t' | '\r' | '\n' | '(' | ')' | '|' | '=' | '"' | '\'' if !inside => return index,
            _ => {}
        }
    }
    text.len()
}

fn word(text: &str) -> Token {
    let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    match text {
        "true" => Token::Literal(Value::Bool(true)),
        "false" => Token::Literal(Value::Bool(false)),
        "null" => Token::Literal(Value::Null),
        _ if number => serde_json::from_str(text).map_or_else(|_| Token::Word(text.to_owned()), Token::Literal),
        _ => Token::Word(text.to_owned()),
    }
}

/// Takes `as |a b|` from the end.
fn names(tag: &Tag, tokens: &mut Tokens) -> Result<Vec<String>, TemplateProblem> {
    let Some(begin) = tokens.iter().position(|(t, _)| *t == Token::Sign('|')) else { return Ok(Vec::new()) };
    let wrong = || tag.at.problem(&tag.inner, "has a `|` that names nothing", "write `as |name|`, at the end of the tag");
    let ends = tokens.last().is_some_and(|(t, _)| *t == Token::Sign('|')) && tokens.len() > begin + 2;
    let behind_as = begin > 0 && tokens[begin - 1].0 == Token::Word("as".into());
    if !ends || !behind_as {
        return Err(wrong());
    }
    let mut names = Vec::new();
    for (token, at) in &tokens[begin + 1..tokens.len() - 1] {
        match token {
            Token::Word(name) if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name != "this" => {
                names.push(name.clone());
            }
            other => return Err(at.problem(&shown(other), "is not a name", "names have letters, digits and _")),
        }
    }
    tokens.truncate(begin - 1);
    Ok(names)
}

struct Reader<'t> {
    tag: &'t Tag,
    tokens: std::iter::Peekable<std::vec::IntoIter<(Token, Spot)>>,
}

impl Reader<'_> {
    /// A helper with its values, or a path alone.
    fn call(&mut self, depth: usize) -> Result<Expr, TemplateProblem> {
        let Some((token, at)) = self.tokens.next() else {
            return Err(self.tag.at.problem(&self.tag.inner, "is an empty tag", "write `{{name}}`, or `\\{{` for two braces"));
        };
        let Token::Word(name) = token else {
            return Err(at.problem(&shown(&token), "is not a name", "a tag begins with a name or a helper"));
        };
        let mut args = Vec::new();
        while let Some((token, spot)) = self.tokens.peek() {
            match token {
                Token::Sign(')') => break,
                Token::Sign('=') => {
                    return Err(spot.problem(&self.tag.inner, "has an option", "helpers take values, no `name=value`"));
                }
                _ => args.push(self.argument(depth)?),
            }
        }
        let known = HELPERS.iter().find(|h| h.0 == name);
        match known {
            // A variable may be called like a helper, as long as it is not called.
            _ if args.is_empty() => Ok(Expr::Path(path(&name, at)?)),
            None => {
                let all = HELPERS.iter().map(|h| format!("`{}`", h.0)).collect::<Vec<_>>().join(", ");
                Err(at.problem(&name, "is not a helper", format!("helpers are {all}")))
            }
            Some((_, helper, least, most)) if args.len() >= *least && args.len() <= *most => {
                Ok(Expr::Call { helper: *helper, args, at })
            }
            Some((_, _, least, _)) => {
                Err(at.problem(&name, format!("takes {least} values, not {}", args.len()), "group them: `(eq a b)`"))
            }
        }
    }

    fn argument(&mut self, depth: usize) -> Result<Expr, TemplateProblem> {
        if depth >= DEEPEST {
            return Err(self.tag.at.problem(&self.tag.inner, "is nested too deep", "make the template simpler"));
        }
        match self.tokens.next() {
            Some((Token::Word(name), at)) => Ok(Expr::Path(path(&name, at)?)),
            Some((Token::Literal(value), at)) => Ok(Expr::Literal(value, at)),
            Some((Token::Sign('('), at)) => {
                let expr = self.call(depth + 1)?;
                match self.tokens.next() {
                    Some((Token::Sign(')'), _)) => Ok(expr),
                    _ => Err(at.problem(&self.tag.inner, "has a `(` that is not closed", "close it with `)`")),
                }
            }
            Some((token, at)) => Err(at.problem(&shown(&token), "stands where a value should", "write a name or a literal")),
            None => Err(self.tag.at.problem(&self.tag.inner, "lacks its value", "write a name behind it")),
        }
    }
}

/// `a.b`, `a/b`, `this.a`, `./a`, `../a`, `@root.a`, `@index`, `@../key`, `a.[any name].b`.
fn path(raw: &str, at: Spot) -> Result<Path, TemplateProblem> {
    let wrong = || at.problem(raw, "is not a path", "write names with dots between them: `a.b`; odd ones as `a.[b c]`");
    let root = raw.strip_prefix("@root").filter(|r| r.is_empty() || r.starts_with(['.', '/']));
    let (start, rest) = if let Some(rest) = root {
        (Start::Root, rest.strip_prefix(['.', '/']).unwrap_or(rest))
    } else if let Some(rest) = raw.strip_prefix('@') {
        let (rest, count) = ups(rest);
        (Start::Local(count), rest)
    } else {
        let plain = raw.strip_prefix("this/").or_else(|| raw.strip_prefix("this.")).or_else(|| raw.strip_prefix("./"));
        let (rest, count) = ups(plain.unwrap_or(raw));
        let start = if plain.is_some() || count > 0 || rest == "this" { Start::Here(count) } else { Start::Name };
        (start, if rest == "this" || rest == "." { "" } else { rest })
    };
    let keys = keys(rest).ok_or_else(wrong)?;
    let local = matches!(start, Start::Local(_));
    if (local && keys.len() != 1) || (start == Start::Name && keys.is_empty()) {
        return Err(wrong());
    }
    Ok(Path { raw: raw.to_owned(), at, start, keys })
}

/// What is behind the `../`, and how many there are.
fn ups(mut rest: &str) -> (&str, usize) {
    let mut count = 0;
    while let Some(next) = rest.strip_prefix("../") {
        (rest, count) = (next, count + 1);
    }
    if rest == ".." { ("", count + 1) } else { (rest, count) }
}

fn keys(mut rest: &str) -> Option<Vec<String>> {
    let mut keys = Vec::new();
    // Letters of all scripts, but nothing that hides or turns around what is read.
    let plain = |c: char| c.is_alphanumeric() || "-_$:".contains(c);
    while !rest.is_empty() {
        let (key, next) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => {
                let end = rest.find(|c| !plain(c)).unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        if key.is_empty() {
            return None;
        }
        keys.push(key.to_owned());
        rest = match next.strip_prefix(['.', '/']) {
            Some("") => return None,
            Some(after) => after,
            None if next.is_empty() => "",
            None => return None,
        };
    }
    Some(keys)
}
