//! Notices HTTP requests that this program has passed on itself, and that come back: through a web back end that is this
//! program, through another machine, or through a proxy.
//!
//! Each request that is passed on gets a Via header with a pseudonym that no other process has (RFC 9110, section
//! 7.6.3). A request that arrives with this pseudonym is in a loop: it is answered with 508 Loop Detected (RFC 5842,
//! section 7.2) and not passed on again.

/// Bytes of random numbers in a pseudonym.
const RANDOM: usize = 8;

/// The pseudonym of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopGuard {
    pseudonym: String,
}

impl LoopGuard {
    /// A pseudonym of the system's random numbers. It shows nothing about this machine.
    ///
    /// # Errors
    /// The system returns no random numbers.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random)?;
        Ok(Self::with(random))
    }

    fn with(random: [u8; RANDOM]) -> Self {
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { pseudonym: format!("sametime-mux-{digits}") }
    }

    /// The member that a request gets which arrived by HTTP/1.1, or by HTTP/1.0. It stands behind those that the request
    /// has: in a further Via header, or in the last one behind a comma.
    pub fn via(&self, is_http_1_1: bool) -> String {
        format!("{} {}", if is_http_1_1 { "1.1" } else { "1.0" }, self.pseudonym)
    }

    /// Whether a request with these values of Via headers was passed on by this process.
    pub fn has_passed<'v>(&self, mut values: impl Iterator<Item = &'v [u8]>) -> bool {
        values.any(|value| members(value).any(|member| self.is_own(&member)))
    }

    /// Whether a member `[name/]version received-by [comment]` names this process. A host is compared without case.
    fn is_own(&self, member: &[u8]) -> bool {
        let mut words = member.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        let received_by = words.nth(1).unwrap_or_default();
        let host = received_by.split(|&byte| byte == b':').next().unwrap_or_default();
        host.eq_ignore_ascii_case(self.pseudonym.as_bytes())
    }
}

/// The members of a list, without their comments, in which a comma separates nothing. A comment is in parentheses, which
/// may be nested; in it, a backslash takes the meaning from the next byte (RFC 9110, section 5.6.5).
fn members(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let (mut all, mut depth, mut is_quoted) = (vec![Vec::new()], 0usize, false);
    for &byte in value {
        match byte {
            _ if is_quoted => is_quoted = false,
            b'\\' if depth > 0 => is_quoted = true,
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ if depth > 0 => (),
            b',' => all.push(Vec::new()),
            byte => all.last_mut().into_iter().for_each(|member| member.push(byte)),
        }
    }
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> LoopGuard {
        LoopGuard::with([0, 1, 2, 3, 0xfc, 0xfd, 0xfe, 0xff])
    }

    fn has_passed(values: &[&str]) -> bool {
        guard().has_passed(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn what_was_passed_on_is_recognised() {
        let guard = guard();
        assert_eq!(guard.via(true), "1.1 sametime-mux-00010203fcfdfeff");
        assert_eq!(guard.via(false), "1.0 sametime-mux-00010203fcfdfeff");
        let own = guard.via(true);
        for values in [
            vec![own.as_str()],
            vec!["1.1 proxy", &own],
            vec![&format!("1.0 fred, {own}, 1.1 p.example.net")],
            vec![&format!("1.1 a (a, (nested \\) comment) here),{own}")],
            vec!["HTTP/1.1 SAMETIME-MUX-00010203FCFDFEFF:80 (comment)"],
            vec![&format!("  ,, \t{own} ")],
        ] {
            assert!(has_passed(&values), "{values:?}");
        }
    }

    #[test]
    fn what_others_have_passed_on_is_not_a_loop() {
        for values in [
            vec![],
            vec![""],
            vec!["1.1 sametime-mux-ff010203fcfdfeff"],
            vec!["1.1 proxy (sametime-mux-00010203fcfdfeff)"],
            vec!["1.1 proxy (, 1.1 sametime-mux-00010203fcfdfeff)"],
            vec!["1.1 sametime-mux-00010203fcfdfeff.example.net"],
            vec!["sametime-mux-00010203fcfdfeff"],
            vec!["1.1 (\\", "1.1 proxy"],
        ] {
            assert!(!has_passed(&values), "{values:?}");
        }
    }

    #[test]
    fn each_process_has_a_pseudonym_of_its_own_that_is_a_token() {
        let (one, other) = (LoopGuard::new().expect("random numbers"), LoopGuard::new().expect("random numbers"));
        assert_ne!(one, other);
        assert!(one.pseudonym.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        assert!(!other.has_passed([one.via(true).as_bytes()].into_iter()));
    }
}
