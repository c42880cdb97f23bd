//! The program `sametime-mux`. All of it is in the library: see [`sametime_mux::cli`].

fn main() -> std::process::ExitCode {
    sametime_mux::cli::main()
}
