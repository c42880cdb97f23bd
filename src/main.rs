//! The `sametime-mux` program; see [`sametime_mux::cli`].

fn main() -> std::process::ExitCode {
    sametime_mux::cli::main()
}
