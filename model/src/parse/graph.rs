//! Who depends on whom: unknown names and circles.

use super::file::RawFile;
use super::problems::Problems;
use super::tree::Place;
use std::collections::HashMap;

/// Says what is unknown, and every dependency that closes a circle, at the place where it is written.
pub fn check(file: &RawFile, problems: &mut Problems) {
    let names: HashMap<&str, usize> = file.names.iter().enumerate().map(|(i, k)| (k.name.as_str(), i)).collect();
    let mut graph: Vec<Vec<(Place, usize)>> = vec![Vec::new(); file.names.len()];
    for service in &file.services {
        let Some(from) = names.get(service.key.name.as_str()) else { continue };
        for word in &service.depends_on {
            if let Some(to) = names.get(word.scalar.text.as_str()) {
                graph[*from].push((word.place, *to));
            } else if let Some(meant) = problems.nearest(&word.scalar, names.keys().copied()) {
                // A service of another file may be meant; what looks like one of this file is a slip.
                let message = format!("no service is called `{}`", word.scalar.shown());
                problems.add(word.place, message, Some(format!("did you mean `{meant}`?")));
            }
        }
    }
    let mut search = Search { graph: &graph, state: vec![State::New; graph.len()], path: Vec::new() };
    for start in 0..graph.len() {
        search.from(start, |place, circle| {
            let names: Vec<&str> = circle.iter().map(|i| file.names[*i].name.as_str()).collect();
            problems.add(place, say(&names), Some("remove one of these `depends_on`".into()));
        });
    }
}

fn say(circle: &[&str]) -> String {
    const SHOWN: usize = 8;
    let more = if circle.len() > SHOWN { " -> ..." } else { "" };
    let first = circle.first().copied().unwrap_or_default();
    let shown: Vec<&str> = circle.iter().take(SHOWN).copied().collect();
    format!("service `{first}` depends on itself: {}{more} -> {first}", shown.join(" -> "))
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    OnPath,
    Done,
}

/// Depth first with its own stack: a chain of thousands of services must not use up the thread's.
struct Search<'g> {
    graph: &'g [Vec<(Place, usize)>],
    state: Vec<State>,
    /// Services from the start to here, each with the number of dependencies looked at.
    path: Vec<(usize, usize)>,
}

impl Search<'_> {
    fn from(&mut self, start: usize, mut found: impl FnMut(Place, &[usize])) {
        if self.state[start] != State::New {
            return;
        }
        self.enter(start);
        while let Some((at, looked)) = self.path.last_mut() {
            let Some((place, next)) = self.graph[*at].get(*looked).copied() else {
                self.state[*at] = State::Done;
                self.path.pop();
                continue;
            };
            *looked += 1;
            match self.state[next] {
                State::New => self.enter(next),
                State::Done => {}
                State::OnPath => {
                    let from = self.path.iter().position(|(s, _)| *s == next).unwrap_or(0);
                    let circle: Vec<usize> = self.path[from..].iter().take(9).map(|(s, _)| *s).collect();
                    found(place, &circle);
                }
            }
        }
    }

    fn enter(&mut self, service: usize) {
        self.state[service] = State::OnPath;
        self.path.push((service, 0));
    }
}
