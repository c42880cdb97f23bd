//! Whether a reload is to be believed: a file that is cut off, or half written, may be legal by itself.
//!
//! ```text
//!  file in force   new file
//!  [limits]        (none)        refused: sections_lost
//!  "...\n"         "..."         refused: cut_off
//!  servers         sandbox       refused: to_sandbox
//! ```
//!
//! Each of these is legal at a start, so a restart puts it into force.

use super::ServerError;
use crate::{
    community::ServerAddress,
    config::{FileForm, Settings},
    telemetry::outcome::ReloadRefusal,
};

/// Compares `new` settings with those in force.
///
/// # Errors
/// Why the new settings are probably not what the admin means, and what to do.
pub(super) fn check(in_force: &Settings, new: &Settings) -> Result<(), ServerError> {
    let file = new.file.display();
    let lost = lost_sections(&in_force.form, &new.form);
    if !lost.is_empty() {
        let what = format!(
            "{file}: the file has no {lost}, which the configuration in force has: it may be cut off, or not yet written to its end. Reload again when it is complete. If a section is to have its defaults, leave its header in the file, or restart the program."
        );
        return Err(ServerError::new(ReloadRefusal::SectionsLost, what));
    }
    if in_force.form.has_last_line_end && !new.form.has_last_line_end {
        let what = format!(
            "{file}: the last line has no line end: the file may be cut off, or not yet written to its end. Reload again when it is complete. If this is all of it, add the line end, or restart the program."
        );
        return Err(ServerError::new(ReloadRefusal::CutOff, what));
    }
    let names_sandbox =
        |settings: &Settings| settings.community.servers.iter().any(|server| server.address == ServerAddress::Sandbox);
    if names_sandbox(new) && !names_sandbox(in_force) {
        let what = format!(
            "{file}: community.servers has \"sandbox\", where any password logs in, and the configuration in force has only other servers. If clients are really to be sent there, restart the program."
        );
        return Err(ServerError::new(ReloadRefusal::ToSandbox, what));
    }
    Ok(())
}

/// The sections that `new` lacks, as text; empty if it lacks none.
fn lost_sections(in_force: &FileForm, new: &FileForm) -> String {
    let lost = in_force.sections.keys().filter(|name| !new.sections.contains_key(*name));
    lost.map(|name| format!("[{name}]")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    const REAL: &str = "[community]\nservers = [\"chat.example:1533\"]\n";

    fn settings(toml: &str) -> Settings {
        config::parse(toml, Path::new("st.toml"), std::iter::empty()).expect("legal")
    }

    fn refusal(in_force: &str, new: &str) -> Option<ReloadRefusal> {
        check(&settings(in_force), &settings(new)).err().map(|error| error.reason)
    }

    #[test]
    fn a_file_that_lost_something_is_not_believed() {
        let with_limits = &format!("{REAL}[limits]\ncapacity = 5\n");
        assert_eq!(refusal(with_limits, REAL), Some(ReloadRefusal::SectionsLost));
        assert_eq!(refusal(with_limits, &format!("{REAL}[limits]\n")), None);
        assert_eq!(refusal(REAL, with_limits), None);
        assert_eq!(refusal(REAL, REAL.trim_end()), Some(ReloadRefusal::CutOff));
        assert_eq!(refusal(REAL.trim_end(), REAL.trim_end()), None);
        assert_eq!(refusal(REAL.trim_end(), REAL), None);
    }

    #[test]
    fn nobody_is_sent_to_the_sandbox_who_was_not_sent_there_before() {
        let sandbox = "[community]\nservers = [\"sandbox\"]\n";
        let both = "[community]\nservers = [\"chat.example:1533\", \"sandbox\"]\n";
        assert_eq!(refusal(REAL, sandbox), Some(ReloadRefusal::ToSandbox));
        assert_eq!(refusal(REAL, both), Some(ReloadRefusal::ToSandbox));
        assert_eq!(refusal(both, sandbox), None);
        assert_eq!(refusal(sandbox, REAL), None);
        assert_eq!(refusal(sandbox, sandbox), None);
    }

    #[test]
    fn what_was_lost_is_named() {
        let before = settings(&format!("{REAL}[limits]\n[tls]\n[tunnel]\n"));
        let error = check(&before, &settings(&format!("{REAL}[tls]\n"))).expect_err("two are lost");
        assert!(error.what.starts_with("st.toml: the file has no [limits], [tunnel], which"), "{error}");
    }
}
