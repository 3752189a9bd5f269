//! What a variable holds is never printed: not where it is wrong, not in a hint, not cut in pieces.

use roadie_model::parse::{Inputs, SourceFile, parse};

const SEEDS: [&str; 4] = [
    include_str!("example-first.yaml"),
    include_str!("example-second.yaml"),
    r#"
defaults: {user: u, port: 22, timeout: 5s}
hosts:
  a: {address: b, tags: [x]}
services:
  w: {runtime: local, depends_on: [z], deploy: {health: {tcp: 80}, scope: user}}
  z: {runtime: docker, build: {type: image, image: i}}
  c:
    hosts: tag:x
    build: {type: command, run: r, output: o, inputs: [i]}
    vars: {a: [1, {b: 2}]}
    files: {from: a, to: b}
    deploy: {env: {A: b}, strategy: canary}
"#,
    r#"
mesh:
  hosts: [a, b, c, d.example]
  interface: wg-a
  network: 10.7.0.0/24
  domain: m.local
  port: 5000
  topology: full
  via: {a: b}
  endpoints: {b: "[fd00::1]:70", c: h.example}
  addresses: {a: 10.7.0.5, c: 10.7.0.9}
  names: hosts
  keepalive: 9s
  mtu: 1400
  default_drop: true
  open: [80, 81]
hosts:
  a: {address: 127.0.0.1}
  b: {address: 192.0.2.1, tags: [x]}
  c: {address: 192.0.2.2}
services:
  s: {hosts: [a, {address: d.example}], ports: [80, 81], depends_on: t}
  t: {hosts: {address: 192.0.2.9}}
"#,
];

/// Each fits a value that some message might echo: a name, a number, a duration, a URL, a path, a triple, a fingerprint.
const VALUES: [&str; 17] = [
    "hunter2-hunter2",
    "7340912",
    "local-zq",
    "tag:zqzq",
    "q7",
    "-98765",
    "12.345",
    "99999h",
    "http://zqzq:99999/",
    "../zqzq",
    "x86_zqzq-a-b.3",
    "SHA256:zqzq",
    "zq\u{1b}zq",
    "10.7.99.77",
    "172.99.0.77/28",
    "[fd00::77]:99999",
    "zq.zq",
];

/// A small generator with a fixed seed: a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("small")
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// Places of the scalars that are no keys.
fn values_of(text: &str) -> Vec<std::ops::Range<usize>> {
    let word = |b: &u8| b.is_ascii_alphanumeric() || b"-_./~".contains(b);
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|b| word(b)).count();
        if length > 0 && bytes.get(at + length) != Some(&b':') {
            found.push(at..at + length);
        }
        at += length.max(1);
    }
    found
}

/// A seed in which variables stand for one to four values.
fn with_variables(seed: &str, random: &mut Random) -> String {
    let values = values_of(seed);
    let mut chosen: Vec<_> = (0..=random.below(4)).map(|_| values[random.below(values.len())].clone()).collect();
    chosen.sort_by_key(|range| std::cmp::Reverse(range.start));
    chosen.dedup();
    let mut text = seed.to_owned();
    for range in chosen {
        let quoted = seed.as_bytes()[range.start.saturating_sub(1)] == b'"';
        let variable = if quoted { "${S}" } else { random.of(&["\"${S}\"", "\"a${S}\"", "'${N:-d}${S}'"]) };
        text.replace_range(range, variable);
    }
    text
}

#[test]
fn no_message_and_no_hint_holds_what_a_variable_says() {
    let mut random = Random(0x853c_49e6_748f_ea9b);
    let (mut refused, mut parsed) = (0, 0);
    for round in 0..8000 {
        let value = random.of(&VALUES);
        let base = SourceFile { name: "roadie.yaml".into(), text: with_variables(SEEDS[round % 4], &mut random) };
        let over = SourceFile { name: "over.yaml".into(), text: with_variables(SEEDS[random.below(4)], &mut random) };
        let overlay = (round / 4 % 4 == 0).then_some(&over);
        let env = |name: &str| (name == "S").then(|| value.to_owned());
        let Err(found) = parse(&Inputs { base: &base, overlay, env: &env, dir: "/project".into() }) else {
            parsed += 1;
            continue;
        };
        refused += 1;
        for diagnostic in found {
            let told = format!("{diagnostic} {}", diagnostic.hint.as_deref().unwrap_or_default());
            assert!(!told.contains(value), "{told}\n--- with {value:?} in\n{}\n--- and\n{}", base.text, over.text);
            let lines = if diagnostic.file == base.name { base.text.lines() } else { over.text.lines() }.count();
            assert!((1..=lines).contains(&diagnostic.line) && diagnostic.column > 0, "{diagnostic}");
        }
    }
    // Both ways were taken often, or nothing was tested.
    assert!(refused > 1000 && parsed > 500, "{refused} refused, {parsed} parsed");
}

#[test]
fn a_guess_does_not_tell_what_a_variable_nearly_says() {
    let text = "services:\n  a: {runtime: \"${S}\", deploy: {strategy: \"${S}\"}}\n";
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let hints = |value: &'static str| {
        let env = move |_: &str| Some(value.to_owned());
        let found = parse(&Inputs { base: &base, overlay: None, env: &env, dir: "/project".into() }).expect_err("refused");
        found.into_iter().map(|d| (d.message, d.hint)).collect::<Vec<_>>()
    };
    assert_eq!(hints("locla"), hints("rollin"));
}
