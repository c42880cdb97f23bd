//! Tokens: each response of a session carries a fresh one, and a request acknowledges the response by it.

use std::cell::RefCell;

/// Bytes of a token. Five, as in the recordings, so that its acknowledgement is one RC2 block.
const TOKEN: usize = 5;
/// The token of a response.
pub type Token = [u8; TOKEN];

/// Tokens that are made with one system call.
const BATCH: usize = 64;

/// A new random token.
///
/// # Panics
/// When the system has no random numbers. It had some when the session was opened.
pub(super) fn random_token() -> Token {
    thread_local! {
        // The next tokens. Made one by one, they were a third of the system calls of a polling client's request.
        static NEXT: RefCell<Vec<Token>> = const { RefCell::new(Vec::new()) };
    }
    NEXT.with_borrow_mut(|next| {
        if next.is_empty() {
            let mut random = [Token::default(); BATCH];
            getrandom::fill(random.as_flattened_mut()).expect("the system's random numbers");
            next.extend(random);
        }
        next.pop().expect("just filled")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_token_comes_twice() {
        let tokens: HashSet<Token> = (0..200).map(|_| random_token()).collect();
        assert_eq!(tokens.len(), 200);
    }
}
