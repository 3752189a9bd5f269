//! What is known of a value before it is there: enough to say whether a path leads somewhere.

use serde_json::Value;
use std::collections::BTreeMap;

/// The shape of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// Text, a number, or true and false; may be null.
    Scalar,
    /// Null for certain.
    Null,
    /// A map with these keys.
    Map(BTreeMap<String, Shape>),
    /// A list with these elements.
    Items(Vec<Shape>),
    /// A list of unknown length.
    List(Box<Shape>),
    /// Now this, now that: no path leads on from here.
    Mixed,
    /// There is no such value (an element of an empty list): what is said of it is never carried out.
    Never,
}

static NEVER: Shape = Shape::Never;

impl Shape {
    /// The shape of a known value.
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Null => Shape::Null,
            Value::Bool(_) | Value::Number(_) | Value::String(_) => Shape::Scalar,
            Value::Array(items) => Shape::Items(items.iter().map(Shape::of).collect()),
            Value::Object(map) => Shape::Map(map.iter().map(|(k, v)| (k.clone(), Shape::of(v))).collect()),
        }
    }

    /// Where a key or an index leads.
    pub(super) fn at(&self, key: &str) -> Option<&Shape> {
        match self {
            Shape::Map(map) => map.get(key),
            Shape::Items(items) => items.get(key.parse::<usize>().ok()?),
            Shape::Never => Some(&NEVER),
            Shape::Scalar | Shape::Null | Shape::List(_) | Shape::Mixed => None,
        }
    }

    /// What holds for each element; nothing when there are none to walk over.
    pub(super) fn element(&self) -> Option<Shape> {
        match self {
            Shape::Map(map) => Some(all(map.values())),
            Shape::Items(items) => Some(all(items.iter())),
            Shape::List(element) => Some((**element).clone()),
            Shape::Never => Some(Shape::Never),
            Shape::Scalar | Shape::Null | Shape::Mixed => None,
        }
    }

    /// `list` or `map`, when it is one for certain.
    pub(super) fn container(&self) -> Option<&'static str> {
        match self {
            Shape::Map(_) => Some("map"),
            Shape::Items(_) | Shape::List(_) => Some("list"),
            _ => None,
        }
    }

    /// The keys that can be named.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let map = if let Shape::Map(map) = self { Some(map) } else { None };
        map.into_iter().flat_map(|m| m.keys().map(String::as_str))
    }

    /// What holds for both.
    pub(super) fn both(&self, other: &Shape) -> Shape {
        match (self, other) {
            (Shape::Never, x) | (x, Shape::Never) => x.clone(),
            (Shape::Null, Shape::Null) => Shape::Null,
            (Shape::Scalar | Shape::Null, Shape::Scalar | Shape::Null) => Shape::Scalar,
            (Shape::Map(a), Shape::Map(b)) => {
                Shape::Map(a.iter().filter_map(|(k, v)| Some((k.clone(), v.both(b.get(k)?)))).collect())
            }
            (Shape::Items(a), Shape::Items(b)) if a.len() == b.len() => {
                Shape::Items(a.iter().zip(b).map(|(a, b)| a.both(b)).collect())
            }
            (Shape::Items(_) | Shape::List(_), Shape::Items(_) | Shape::List(_)) => {
                let element = |s: &Shape| s.element().unwrap_or(Shape::Mixed);
                Shape::List(Box::new(element(self).both(&element(other))))
            }
            _ => Shape::Mixed,
        }
    }
}

fn all<'s>(shapes: impl Iterator<Item = &'s Shape>) -> Shape {
    shapes.fold(Shape::Never, |sum, next| sum.both(next))
}
