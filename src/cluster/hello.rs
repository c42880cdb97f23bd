//! How two nodes prove to each other who they are, when one of them has connected. Without I/O.
//!
//! ```text
//!  the node that connects                                        the node that accepts
//!    SAMETIME-MUX-CLUSTER/1 <own name> <nonce> CR LF      ──▶
//!                                                         ◀──    SAMETIME-MUX-CLUSTER/1 <nonce> <proof> CR LF
//!    <proof> CR LF, and the first request                 ──▶
//! ```
//! A nonce is 16 random bytes, and a proof is the HMAC of the role of the node that gives it, of both names and of both
//! nonces. Both are written in hexadecimal digits. The node that connects knows the name of the node that it wants, so
//! another node at the same address proves nothing. A recorded proof is worth nothing later, because the nonces differ.
//!
//! The requests that follow are not encrypted, and carry no proof of their own: whoever can change packets on the way
//! between the nodes can read and change them, as on the way to the Community servers.

use std::str;

use super::secret::{PROOF, Secret};

/// The word with which both first lines begin. The number is the version.
const WORD: &str = "SAMETIME-MUX-CLUSTER/1";
/// Bytes of a nonce.
const NONCE: usize = 16;
/// The longest line, in bytes, without its end.
pub const LONGEST_LINE: usize = 400;
/// The longest name of a node, in bytes, as that of a host.
pub const LONGEST_NAME: usize = 253;

/// Random bytes of one node for one connection.
pub type Nonce = [u8; NONCE];

/// A proof.
type Proof = [u8; PROOF];

/// The node that gives a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Connects,
    Accepts,
}

/// One connection as both of its nodes know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The name of the node that connects.
    pub connects: &'a str,
    /// The nonce of the node that connects.
    pub its_nonce: Nonce,
    /// The name of the node that accepts.
    pub accepts: &'a str,
    /// The nonce of the node that accepts.
    pub nonce: Nonce,
}

impl Hello<'_> {
    fn parts<'p>(&'p self, role: &'p Role) -> [&'p [u8]; 5] {
        let role = match role {
            Role::Connects => "connects",
            Role::Accepts => "accepts",
        };
        [role.as_bytes(), self.connects.as_bytes(), self.accepts.as_bytes(), &self.its_nonce, &self.nonce]
    }

    /// The line of the node that accepts.
    pub fn answer(&self, secret: &Secret) -> String {
        format!("{WORD} {} {}\r\n", digits(&self.nonce), digits(&secret.prove(&self.parts(&Role::Accepts))))
    }

    /// The last line of the node that connects.
    pub fn last(&self, secret: &Secret) -> String {
        format!("{}\r\n", digits(&secret.prove(&self.parts(&Role::Connects))))
    }

    /// Whether the node that accepts has proved who it is.
    pub fn is_answered(&self, secret: &Secret, proof: &[u8]) -> bool {
        secret.verify(&self.parts(&Role::Accepts), proof)
    }

    /// Whether the node that connects has proved who it is, with its last line.
    pub fn is_completed(&self, secret: &Secret, line: &[u8]) -> bool {
        bytes::<PROOF>(line).is_some_and(|proof: Proof| secret.verify(&self.parts(&Role::Connects), &proof))
    }
}

/// The first line of the node that connects.
pub fn greeting(name: &str, nonce: &Nonce) -> String {
    format!("{WORD} {name} {}\r\n", digits(nonce))
}

/// Reads a first line, without its end: the name and the nonce of the node that connects.
pub fn read_greeting(line: &[u8]) -> Option<(&str, Nonce)> {
    let [word, name, nonce] = words(line)?;
    let is_name = (1..=LONGEST_NAME).contains(&name.len());
    (word == WORD && is_name).then_some(())?;
    Some((name, bytes(nonce.as_bytes())?))
}

/// Reads the answer, without its end: the nonce of the node that accepts, and its proof.
pub fn read_answer(line: &[u8]) -> Option<(Nonce, Proof)> {
    let [word, nonce, proof] = words(line)?;
    (word == WORD).then_some(())?;
    Some((bytes(nonce.as_bytes())?, bytes(proof.as_bytes())?))
}

/// The three words of a line.
fn words(line: &[u8]) -> Option<[&str; 3]> {
    let mut words = str::from_utf8(line).ok()?.split(' ');
    let three = [words.next()?, words.next()?, words.next()?];
    words.next().is_none().then_some(three)
}

/// Bytes in hexadecimal digits.
fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of exactly so many hexadecimal digits.
fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: Hello<'_> = Hello { connects: "mux-0", its_nonce: [1; NONCE], accepts: "mux-1", nonce: [2; NONCE] };

    fn line(text: &str) -> &[u8] {
        text.strip_suffix("\r\n").expect("a line").as_bytes()
    }

    #[test]
    fn two_nodes_prove_who_they_are() {
        let secret = Secret::new(b"the secret of a test");
        assert_eq!(read_greeting(line(&greeting("mux-0", &HELLO.its_nonce))), Some(("mux-0", HELLO.its_nonce)));
        let answer = HELLO.answer(&secret);
        assert!(answer.len() <= LONGEST_LINE);
        let (nonce, proof) = read_answer(line(&answer)).expect("an answer");
        assert!(nonce == HELLO.nonce && HELLO.is_answered(&secret, &proof));
        assert!(HELLO.is_completed(&secret, line(&HELLO.last(&secret))));
    }

    #[test]
    fn a_proof_is_of_one_connection_one_role_and_one_secret() {
        let (secret, other) = (Secret::new(b"the secret of a test"), Secret::new(b"the secret of others"));
        let (_, proof) = read_answer(line(&HELLO.answer(&secret))).expect("an answer");
        let last = HELLO.last(&secret);
        for changed in [
            Hello { connects: "mux-2", ..HELLO },
            Hello { accepts: "mux-2", ..HELLO },
            Hello { its_nonce: [3; NONCE], ..HELLO },
            Hello { nonce: [3; NONCE], ..HELLO },
            Hello { connects: HELLO.accepts, accepts: HELLO.connects, ..HELLO },
        ] {
            assert!(
                !changed.is_answered(&secret, &proof) && !changed.is_completed(&secret, line(&last)),
                "{changed:?}"
            );
        }
        assert!(!HELLO.is_answered(&other, &proof) && !HELLO.is_completed(&other, line(&last)));
        // What a node has sent cannot be sent back to it.
        assert!(!HELLO.is_completed(&secret, digits(&proof).as_bytes()));
    }

    #[test]
    fn lines_of_another_form_are_none() {
        let nonce = digits(&[1; NONCE]);
        for text in [
            String::new(),
            WORD.to_owned(),
            format!("{WORD} mux-0"),
            format!("{WORD} mux-0 {nonce}0"),
            format!("{WORD} mux-0 {}", &nonce[1..]),
            format!("{WORD} mux-0 {nonce} x"),
            format!("{WORD}  {nonce}"),
            format!("{WORD} {} {nonce}", "x".repeat(LONGEST_NAME + 1)),
            format!("SAMETIME-MUX-CLUSTER/2 mux-0 {nonce}"),
            format!("{WORD} mux-0 {}", nonce.replace('0', "g")),
        ] {
            assert_eq!(read_greeting(text.as_bytes()), None, "{text}");
            assert_eq!(read_answer(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_read_in_a_way_that_panics(text in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = (read_greeting(&text), read_answer(&text));
            prop_assert!(!HELLO.is_completed(&Secret::new(b"the secret of a test"), &text));
        }
    }
}
