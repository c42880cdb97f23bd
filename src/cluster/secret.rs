//! The secret that the nodes of a cluster share: the tags of nodes and the proofs that nodes give each other are made
//! with it, by HMAC with SHA-256 (RFC 2104).

use std::{fmt, path::Path};

use ring::hmac;

use crate::wire::tunnel::name::NodeTag;

/// The shortest secret, in bytes. Whoever records how a connection begins can try any number of secrets against the
/// record, so it must not be guessable.
const SHORTEST: usize = 16;
/// The longest secret, in bytes: a file that is longer is another file by mistake.
const LONGEST: usize = 4096;

/// Bytes of a proof.
pub const PROOF: usize = 32;

/// The secret.
pub struct Secret(hmac::Key);

/// No log shows it.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a secret can't be used: a text for the admin, with the file and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretError(String);

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Secret {
    /// Reads the secret from a file. White space at both ends does not belong to it.
    ///
    /// # Errors
    /// The file can't be read, or its text is too short or too long.
    pub fn load(file: &Path) -> Result<Self, SecretError> {
        let shown = file.display();
        let bytes = std::fs::read(file).map_err(|error| SecretError(format!("{shown} can't be read: {error}")))?;
        let advice = "make one for all nodes: openssl rand -hex 32";
        match bytes.trim_ascii() {
            short if short.len() < SHORTEST => {
                Err(SecretError(format!("{shown} has fewer than {SHORTEST} characters; {advice}")))
            }
            long if long.len() > LONGEST => {
                Err(SecretError(format!("{shown} has more than {LONGEST} characters; {advice}")))
            }
            secret => Ok(Self::new(secret)),
        }
    }

    /// The secret of these bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The tag of the node of this name.
    pub fn tag(&self, node: &str) -> NodeTag {
        let made = self.prove(&[b"tag", node.as_bytes()]);
        let [first, second, ..] = made;
        NodeTag([first, second])
    }

    /// The proof of these parts. Each is preceded by its length, so that no two lists of parts are the same.
    pub fn prove(&self, parts: &[&[u8]]) -> [u8; PROOF] {
        let mut proof = [0; PROOF];
        proof.copy_from_slice(self.context(parts).sign().as_ref());
        proof
    }

    /// Whether `proof` is the proof of these parts. It takes the same time wherever the two differ.
    pub fn verify(&self, parts: &[&[u8]], proof: &[u8]) -> bool {
        hmac::verify(&self.0, &joined(parts), proof).is_ok()
    }

    fn context(&self, parts: &[&[u8]]) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&joined(parts));
        context
    }
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_proofs_depend_on_the_secret_and_on_each_part() {
        let (one, other) = (Secret::new(b"one secret of two"), Secret::new(b"the other secret."));
        assert_eq!(one.tag("mux-0"), one.tag("mux-0"));
        assert_ne!(one.tag("mux-0"), one.tag("mux-1"));
        assert_ne!(one.tag("mux-0"), other.tag("mux-0"));
        let proof = one.prove(&[b"ab", b"c"]);
        assert!(one.verify(&[b"ab", b"c"], &proof));
        assert!(!one.verify(&[b"a", b"bc"], &proof), "other parts with the same bytes");
        assert!(!other.verify(&[b"ab", b"c"], &proof));
        assert!(!one.verify(&[b"ab", b"c"], &proof[1..]));
    }

    #[test]
    fn a_secret_is_neither_short_nor_another_file() {
        let folder = tempfile::tempdir().expect("folder");
        let load = |text: &str| {
            let file = folder.path().join("secret");
            std::fs::write(&file, text).expect("written");
            Secret::load(&file).map(|secret| secret.tag("a")).map_err(|error| error.to_string())
        };
        assert_eq!(load("0123456789abcdef\n"), load(" 0123456789abcdef"));
        assert!(load("0123456789abcde\n\n\n").expect_err("short").contains("fewer than 16 characters"));
        assert!(load(&"x".repeat(5000)).expect_err("long").contains("more than 4096 characters"));
        assert!(Secret::load(&folder.path().join("none")).expect_err("absent").to_string().contains("can't be read"));
    }
}
