//! Input of somebody bent on harm.

use crate::common::{KINDS, Workshop, allow, keygen, public};
use jiff::tz::TimeZone;
use roadie_packager::trust::{self, AllowedSigners, Policy, RevokedKeys, Signer};
use std::fs;

/// Bytes that somebody bent on harm would send: errors, never a panic, never trust.
#[tokio::test]
async fn hostile_bytes_never_panic_and_never_pass() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    let mut random = fastrand::Rng::with_seed(7);
    for (kind, bits) in KINDS {
        let key = keygen(&shop.dir, &format!("{kind}{bits}"), &["-t", kind, "-b", bits]);
        let signed = trust::sign(&shop.store, &package.id, &Signer::from_file(&key).expect("a key")).expect("signs");
        let (statement, signature) = (fs::read(&signed.statement).expect("reads"), fs::read(&signed.signature).expect("reads"));
        let line = format!("me@x namespaces=\"*\",valid-after=\"20200101Z\" {}", public(&key));
        let policy = allow(&line);
        let passes = |statement: &[u8], signature: &[u8]| trust::judge(&package, statement, signature, &policy).is_ok();
        assert!(passes(&statement, &signature));
        for _ in 0..50 {
            let mut bent = statement.clone();
            let at = random.usize(..bent.len());
            bent[at] ^= 1 << random.u8(..8);
            assert!(!passes(&bent, &signature), "{}", String::from_utf8_lossy(&bent));
        }
        // Of the signature's body each bit counts; blanks and the frame around it do not.
        let armour = String::from_utf8(signature.clone()).expect("text");
        let body: Vec<usize> = (armour.find('\n').expect("a line") + 1
            ..armour.rfind("=\n").unwrap_or(armour.rfind("\n-").expect("an end")))
            .filter(|at| armour.as_bytes()[*at].is_ascii_alphanumeric())
            .collect();
        for _ in 0..50 {
            let mut bent = signature.clone();
            let at = body[random.usize(..body.len())];
            let before = bent[at];
            bent[at] = random.alphanumeric() as u8;
            assert!(bent[at] == before || !passes(&statement, &bent), "{}", String::from_utf8_lossy(&bent));
        }
        for length in 0..signature.len() - 1 {
            assert!(!passes(&statement, &signature[..length]) || signature[length..].iter().all(u8::is_ascii_whitespace));
        }
        for length in 0..line.len() {
            let _ = AllowedSigners::parse(&line.as_bytes()[..length], &TimeZone::UTC);
            let _ = RevokedKeys::parse(&line.as_bytes()[length..]);
        }
        for _ in 0..2000 {
            let mut bent = line.clone().into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bent.len());
                bent[at] = *b"\"\\,=!*? \t\n#Z0\xff\0a".get(random.usize(..17)).unwrap_or(&0);
            }
            if let Ok(parsed) = AllowedSigners::parse(&bent, &TimeZone::UTC) {
                let _ = trust::judge(&package, &statement, &signature, &Policy { allowed: parsed, ..policy.clone() });
            }
        }
        fs::remove_file(&signed.signature).expect("removes");
    }
    for _ in 0..3000 {
        let length = random.usize(..200);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        let _ = AllowedSigners::parse(&bytes, &TimeZone::UTC);
        assert!(trust::judge(&package, b"", &bytes, &allow("")).is_err());
        let framed = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", base64ish(&mut random));
        assert!(trust::judge(&package, b"", framed.as_bytes(), &allow("")).is_err());
    }
}

/// `SSHSIG` and then anything.
fn base64ish(random: &mut fastrand::Rng) -> String {
    let length = random.usize(..15) * 4;
    let tail: String = std::iter::repeat_with(|| random.alphanumeric()).take(length).collect();
    format!("U1NIU0lHAAAAAQ{}", if tail.is_empty() { "==".to_owned() } else { format!("AA{tail}") })
}
