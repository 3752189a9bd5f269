//! Fills a template in. Strict: what is missing, null or no text is an error with its path, never an empty string.

use super::check::container;
use super::expr::{Expr, Helper, Path, Start};
use super::parse::{Block, BlockKind, Node, parse};
use super::write::{self, Directive, is_hidden};
use super::{Spot, Style, TemplateProblem, place};
use serde_json::Value;
use std::borrow::Cow;

/// Longest text that comes out, bytes.
const LONGEST: usize = 4 << 20;
/// Most nodes that are carried out: loops in loops in loops end here.
const MOST_STEPS: usize = 1_000_000;

/// Fills in a template of `style`. `exec` in a unit is taken as it is: it is a command line that is quoted already.
///
/// # Errors
/// The first [`TemplateProblem`]; it names the path and never the value.
pub fn render(text: &str, style: Style, context: &Value) -> Result<String, TemplateProblem> {
    let (nodes, problems) = parse(text);
    if let Some(first) = problems.into_iter().min_by_key(|p| (p.line, p.column)) {
        return Err(first);
    }
    let ready = if style == Style::Unit { context.get("exec") } else { None };
    let mut writer = Writer { style, ready, out: String::new(), toml: place::Toml::default(), helper: None, steps: 0 };
    let frame = Frame { parent: None, value: context, names: Vec::new(), turn: None };
    writer.nodes(&nodes, &frame)?;
    Ok(writer.out)
}

/// Which turn of an `each` it is.
struct Turn<'p> {
    index: usize,
    last: bool,
    key: Option<&'p str>,
}

/// What `this` is, and everything around it.
struct Frame<'p> {
    parent: Option<&'p Frame<'p>>,
    value: &'p Value,
    names: Vec<(&'p str, &'p Value)>,
    turn: Option<Turn<'p>>,
}

impl<'p> Frame<'p> {
    fn all(&'p self) -> impl Iterator<Item = &'p Frame<'p>> {
        std::iter::successors(Some(self), |f| f.parent)
    }
}

struct Writer<'v> {
    style: Style,
    ready: Option<&'v Value>,
    out: String,
    toml: place::Toml,
    /// The helper that wrote the end of `out`.
    helper: Option<(Helper, Spot)>,
    steps: usize,
}

type Found<'p> = Result<Cow<'p, Value>, TemplateProblem>;

impl Writer<'_> {
    fn nodes(&mut self, nodes: &[Node], frame: &Frame<'_>) -> Result<(), TemplateProblem> {
        self.step()?;
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.text(text)?,
                Node::Value(expr) => self.value(expr, frame)?,
                Node::Block(block) => self.block(block, frame)?,
            }
        }
        Ok(())
    }

    /// Counts; also turns of loops whose body is empty.
    fn step(&mut self) -> Result<(), TemplateProblem> {
        self.steps += 1;
        if self.steps > MOST_STEPS || self.out.len() > LONGEST {
            let spot = Spot { line: 1, column: 1 };
            return Err(spot.problem("template", "makes more than 4 MiB of text, or a million turns", "make its lists shorter"));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), TemplateProblem> {
        if let Some((helper, at)) = self.helper.take()
            && text.starts_with(['"', '\''])
        {
            return Err(in_quotes(at, helper));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn block(&mut self, block: &Block, frame: &Frame<'_>) -> Result<(), TemplateProblem> {
        let subject = self.expr(&block.subject, frame)?;
        match block.kind {
            BlockKind::If | BlockKind::Unless => {
                let taken = truthy(&subject) == (block.kind == BlockKind::If);
                self.nodes(if taken { &block.body } else { &block.other }, frame)
            }
            BlockKind::With if truthy(&subject) => {
                let names = block.names.iter().map(|n| (n.as_str(), &*subject)).collect();
                self.nodes(&block.body, &Frame { parent: Some(frame), value: &subject, names, turn: None })
            }
            BlockKind::With => self.nodes(&block.other, frame),
            BlockKind::Each => {
                let turns: Vec<(Option<&str>, &Value)> = match &*subject {
                    Value::Array(items) => items.iter().map(|v| (None, v)).collect(),
                    Value::Object(map) => map.iter().map(|(k, v)| (Some(k.as_str()), v)).collect(),
                    other => {
                        let (at, raw) = label(&block.subject);
                        let is = if other.is_null() { "is null" } else { "is neither a list nor a map" };
                        return Err(at.problem(raw, is, "`{{#each}}` walks over lists and maps; an empty list is `[]`"));
                    }
                };
                if turns.is_empty() {
                    return self.nodes(&block.other, frame);
                }
                turns.iter().enumerate().try_for_each(|(index, (key, value))| {
                    let turn = Turn { index, last: index + 1 == turns.len(), key: *key };
                    let second = key.map_or_else(|| Value::from(index), Value::from);
                    let names = block.names.iter().map(String::as_str).zip([*value, &second]).collect();
                    self.nodes(&block.body, &Frame { parent: Some(frame), value, names, turn: Some(turn) })
                })
            }
        }
    }

    fn value(&mut self, expr: &Expr, frame: &Frame<'_>) -> Result<(), TemplateProblem> {
        if let Expr::Call { helper, args, at } = expr
            && helper.quotes()
        {
            return self.quoted(*helper, args, *at, frame);
        }
        let value = self.expr(expr, frame)?;
        let (at, raw) = label(expr);
        if let (Cow::Borrowed(value), Some(ready)) = (&value, self.ready)
            && std::ptr::eq(*value, ready)
        {
            return self.ready(ready.as_str().unwrap_or_default(), at);
        }
        self.bare(&value, at, raw)
    }

    /// A command line that is quoted already.
    fn ready(&mut self, text: &str, at: Spot) -> Result<(), TemplateProblem> {
        let line = place::unit_line(&self.out);
        if line.directive != Some(Directive::Exec) || line.quoted || text.chars().any(char::is_control) {
            return Err(at.problem("exec", "stands where no command line can", "write `ExecStart={{exec}}`"));
        }
        self.out.push_str(text);
        self.helper = Some((Helper::Unit, at));
        Ok(())
    }

    /// `{{x}}`: only what means nothing but itself in this kind of text.
    fn bare(&mut self, value: &Value, at: Spot, raw: &str) -> Result<(), TemplateProblem> {
        let text = match value {
            Value::Null => {
                return Err(at.problem(raw, "is null", format!("give it a value, or write `{{{{#if {raw}}}}}` around it")));
            }
            Value::Array(_) => return Err(container(at, raw, "list", self.style)),
            Value::Object(_) => return Err(container(at, raw, "map", self.style)),
            Value::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        };
        let hint = match self.style {
            Style::Toml => format!("write `{{{{toml {raw}}}}}`, without quotes around it"),
            Style::Unit => format!("write `{{{{unit {raw}}}}}`, without quotes around it"),
            Style::Arg => "an argument is one line of text".to_owned(),
            Style::Plain => format!("write `{{{{json {raw}}}}}`, or the helper for this kind of text"),
        };
        if text.chars().any(is_hidden) {
            return Err(at.problem(raw, "has a control character or one that hides others", hint));
        }
        let fits = match self.style {
            Style::Toml => !value.is_string() || text.chars().all(plain),
            Style::Unit => fits_unit(&text, &place::unit_line(&self.out)),
            Style::Arg | Style::Plain => true,
        };
        if !fits {
            return Err(at.problem(raw, "has characters that mean something here", hint));
        }
        self.text(&text)
    }

    /// `{{toml x}}` and its kind.
    fn quoted(&mut self, helper: Helper, args: &[Expr], at: Spot, frame: &Frame<'_>) -> Result<(), TemplateProblem> {
        if let Some(hint) = self.style.refuses(helper) {
            return Err(at.problem(helper.name(), "does not fit this kind of text", hint));
        }
        let line = if self.style == Style::Unit { Some(place::unit_line(&self.out)) } else { None };
        let inside = match self.style {
            Style::Toml => self.toml.in_string(&self.out),
            Style::Arg => helper == Helper::Sh && place::sh_quoted(&self.out),
            Style::Unit | Style::Plain => line.as_ref().is_some_and(|l| l.quoted),
        };
        if inside || (self.out.ends_with(['"', '\'']) && !self.line_of_text()) {
            return Err(in_quotes(at, helper));
        }
        let directive = line.as_ref().map_or(Some(Directive::Exec), |l| l.directive);
        let Some(directive) = directive else {
            return Err(at.problem(
                helper.name(),
                "stands before the `=` of its line",
                "a value is behind the `=` of a directive",
            ));
        };
        let text = self.written(helper, args, directive, frame)?;
        let command = directive == Directive::Exec && line.is_some_and(|l| l.first);
        if command && text.trim_start_matches('"').starts_with(PREFIXES) {
            return Err(at.problem(helper.name(), "would begin a command line with a sign", "write the sign into the template"));
        }
        self.out.push_str(&text);
        self.helper = if directive == Directive::Line { None } else { Some((helper, at)) };
        Ok(())
    }

    /// In a directive that takes its line as one text, quotes are letters like others.
    fn line_of_text(&self) -> bool {
        self.style == Style::Unit && place::unit_line(&self.out).directive == Some(Directive::Line)
    }

    fn written(&self, helper: Helper, args: &[Expr], directive: Directive, frame: &Frame<'_>) -> Result<String, TemplateProblem> {
        let Some(arg) = args.first() else { return Ok(String::new()) };
        let value = self.expr(arg, frame)?;
        let (at, raw) = label(arg);
        let refused = |problem: &str| at.problem(raw, problem, format!("`{}` cannot write it", helper.name()));
        let text = || match &*value {
            Value::String(text) => Ok(Cow::Borrowed(text.as_str())),
            Value::Null => Err(refused("is null")),
            Value::Array(_) => Err(refused("is a list, and no text")),
            Value::Object(_) => Err(refused("is a map, and no text")),
            other => Ok(Cow::Owned(other.to_string())),
        };
        match helper {
            Helper::Json => Ok(write::json(&value)),
            Helper::Toml => write::toml(&value).map_err(refused),
            Helper::Sh => write::sh(&text()?).map_err(refused),
            Helper::Unit => write::unit(&text()?, directive).map_err(refused),
            _ => write::env_value(&text()?).map_err(refused),
        }
    }

    fn expr<'p>(&self, expr: &'p Expr, frame: &'p Frame<'p>) -> Found<'p>
    where
        Self: 'p,
    {
        let (helper, args) = match expr {
            Expr::Literal(value, _) => return Ok(Cow::Borrowed(value)),
            Expr::Path(path) => return self.find(path, frame),
            Expr::Call { helper, args, .. } => (*helper, args),
        };
        if helper.quotes() {
            return Ok(Cow::Owned(Value::String(self.written(helper, args, Directive::Exec, frame)?)));
        }
        let values: Vec<Cow<'p, Value>> = args.iter().map(|a| self.expr(a, frame)).collect::<Result<_, _>>()?;
        Ok(match helper {
            Helper::Default => values.iter().find(|v| !v.is_null()).cloned().unwrap_or(Cow::Owned(Value::Null)),
            Helper::Eq => Cow::Owned((values[0] == values[1]).into()),
            Helper::Ne => Cow::Owned((values[0] != values[1]).into()),
            Helper::And => Cow::Owned(values.iter().all(|v| truthy(v)).into()),
            Helper::Or => Cow::Owned(values.iter().any(|v| truthy(v)).into()),
            _ => Cow::Owned((!values.iter().any(|v| truthy(v))).into()),
        })
    }

    fn find<'p>(&self, path: &'p Path, frame: &'p Frame<'p>) -> Found<'p> {
        let missing = || path.at.problem(&path.raw, "is missing", "declare it under `vars`");
        let first = path.keys.first().map_or("", String::as_str);
        let (mut value, keys) = match path.start {
            Start::Root => (frame.all().last().ok_or_else(missing)?.value, &path.keys[..]),
            Start::Here(up) => (frame.all().nth(up).ok_or_else(missing)?.value, &path.keys[..]),
            Start::Local(up) => {
                let turn = frame.all().filter_map(|f| f.turn.as_ref()).nth(up).ok_or_else(missing)?;
                return Ok(Cow::Owned(match first {
                    "index" => turn.index.into(),
                    "first" => (turn.index == 0).into(),
                    "last" => turn.last.into(),
                    "key" => turn.key.ok_or_else(missing)?.into(),
                    _ => return Err(missing()),
                }));
            }
            Start::Name => match frame.all().find_map(|f| f.names.iter().find(|(n, _)| *n == first)) {
                Some((_, value)) => (*value, &path.keys[1..]),
                None => (frame.value, &path.keys[..]),
            },
        };
        for key in keys {
            let next = match value {
                Value::Object(map) => map.get(key),
                Value::Array(items) => key.parse().ok().and_then(|i: usize| items.get(i)),
                _ => None,
            };
            value = next.ok_or_else(missing)?;
        }
        Ok(Cow::Borrowed(value))
    }
}

/// Signs that change how systemd starts a command (systemd.service(5), "Special executable prefixes").
const PREFIXES: [char; 6] = ['@', '-', ':', '+', '!', '|'];

/// Means nothing but itself in a TOML string, key or number.
fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./:@+-".contains(c)
}

fn fits_unit(text: &str, line: &place::UnitLine) -> bool {
    let word = |c: char| c.is_alphanumeric() || "_./:@+-,=".contains(c);
    match line.directive {
        // No value makes a directive of its own.
        None => text.chars().all(|c| word(c) && c != '='),
        Some(Directive::Line) => !text.contains(['%', '\\']),
        Some(Directive::Exec) if line.first && text.starts_with(PREFIXES) => false,
        Some(_) => text.chars().all(word),
    }
}

fn in_quotes(at: Spot, helper: Helper) -> TemplateProblem {
    at.problem(helper.name(), "stands inside of quotes or beside one", "it writes its own quotes: take those around it away")
}

fn label(expr: &Expr) -> (Spot, &str) {
    match expr {
        Expr::Path(path) => (path.at, &path.raw),
        Expr::Literal(_, at) => (*at, "literal"),
        Expr::Call { helper, args, at } => match args.first() {
            Some(arg @ (Expr::Path(_) | Expr::Call { .. })) => label(arg),
            _ => (*at, helper.name()),
        },
    }
}

/// As handlebars has it: false, null, 0 and what is empty are not.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64().is_some_and(|f| f != 0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
