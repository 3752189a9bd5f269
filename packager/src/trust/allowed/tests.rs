//! `allowed_signers`, line by line.

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn principal(line: &str, identity: Option<&str>, now: &str) -> Result<String, String> {
    let parsed = AllowedSigners::parse(line.as_bytes(), &TimeZone::UTC).map_err(|e| e[0].to_string())?;
    let key = public_key(KEY).expect("a key");
    parsed.principal(&key, identity, at(now)).map_err(|e| e.to_string())
}

const NOW: &str = "2026-01-01T00:00:00Z";

#[test]
fn patterns_are_those_of_openssh() {
    for (text, list, fits) in [
        ("a@b", "a@b", true),
        ("a@b", "*@b", true),
        ("a@b", "?@b", true),
        ("aa@b", "?@b", false),
        ("a@b", "x,*", true),
        ("a@b", "*,!a@*", false),
        ("a@b", "!a@*,*", false),
        ("a@b", "!c@*", false),
        ("A@b", "a@b", false),
        ("", "*", true),
        ("abcabd", "*ab?", true),
        ("a@b", "", false),
    ] {
        assert_eq!(matches_list(text, list), fits, "{text} {list}");
    }
    // Exponential in a matcher that tries everything.
    assert!(!matches(&"a".repeat(5000), &format!("{}b", "*a".repeat(200))));
}

#[test]
fn principals_and_options() {
    let line = |before: &str| format!("{before} {KEY} a comment");
    assert_eq!(principal(&line("alice@x"), None, NOW), Ok("alice@x".into()));
    assert_eq!(principal(&line("  *@x,bob@x"), None, NOW), Ok("bob@x".into()));
    assert_eq!(principal(&line("*@x"), None, NOW), Ok("*@x".into()));
    assert_eq!(principal(&line("*@x"), Some("carol@x"), NOW), Ok("carol@x".into()));
    assert_eq!(principal(&line("\"alice smith,al\""), Some("alice smith"), NOW), Ok("alice smith".into()));
    let other = principal(&line("*@x,!eve@x"), Some("eve@x"), NOW).expect_err("refused");
    assert_eq!(other, "the signer is `*@x,!eve@x` in allowed_signers, not `eve@x`");
    for good in [
        "namespaces=\"roadie-*\"",
        "NAMESPACES=\"git,roadie-package-v1\"",
        "valid-after=\"20251231\",valid-before=\"202602010000Z\"",
    ] {
        assert_eq!(principal(&line(&format!("a {good}")), None, NOW), Ok("a".into()), "{good}");
    }
    let refused = |options: &str, said: &str| {
        let error = principal(&line(&format!("a {options}")), None, NOW).expect_err(options);
        assert!(error.contains(said), "{options}: {error}");
    };
    refused("namespaces=\"git\"", "may not sign packages");
    refused("valid-after=\"20260102\"", "counts only from 2026-01-02T00:00:00Z on");
    refused("valid-before=\"20251231235959utc\"", "counted only until 2025-12-31T23:59:59Z");
    refused("cert-authority", "line 1: `cert-authority` is not supported");
    refused("cert-authority,namespaces=\"git\"", "`cert-authority` is not supported");
    refused("namespaces=git", "needs a value in quotes");
    refused("namespaces=\"a\",namespaces=\"b\"", "there twice");
    refused("namespaces=\"a\"valid-after=\"20260101\"", "a comma is missing");
    refused("namespaces=\"a\",", "behind the last comma");
    refused("valid-after=\"2026\"", "is not a time");
    refused("valid-after=\"20261301\"", "is not a time");
    refused("valid-after=\"20260102\",valid-before=\"20260101\"", "not later");
    refused("no-touch", "unknown option `no-touch`");
    refused("namespaces=\"a", "not closed");
}

#[test]
fn times_without_a_zone_are_local() {
    let zone = TimeZone::fixed(jiff::tz::offset(2));
    assert_eq!(time("202601010200", &zone), Ok(at("2026-01-01T00:00:00Z")));
    assert_eq!(time("202601010200Z", &zone), Ok(at("2026-01-01T02:00:00Z")));
}

#[test]
fn every_bad_line_is_named() {
    let text = format!("# good\n\na {KEY}\r\nb ssh-ed25519 AAAA\nc\nd ssh-rsa\ne cert-authority {KEY}\n\"f {KEY}\n,a {KEY}\n");
    let mistakes = AllowedSigners::parse(text.as_bytes(), &TimeZone::UTC).expect_err("mistakes");
    assert_eq!(mistakes.iter().map(|m| m.line).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    let mistakes = RevokedKeys::parse(format!("{KEY}\nSHA256:abc\n").as_bytes()).expect_err("mistakes");
    assert_eq!(mistakes[0].line, 2);
    assert!(RevokedKeys::parse(b"SSHKRL\n\0\0").expect_err("binary")[0].problem.contains("binary KRL"));
}

/// A key in two lines: what one refuses another may allow.
#[test]
fn any_line_may_allow() {
    let text = format!("a namespaces=\"git\" {KEY}\nb {KEY}\n");
    assert_eq!(principal(&text, None, NOW), Ok("b".into()));
}
