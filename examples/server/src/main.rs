//! The server as a program: options, start, and an orderly end.

use clap::Parser;
use gemma4::{Session, SessionOptions};
use gemma4_examples::{DrafterArgs, Failure, ModelArgs, run_main};
use gemma4_server::{App, Config, serve};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

#[derive(Parser)]
#[command(about = "Serves a Gemma 4 model over HTTP, as OpenAI's API does")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    drafter: DrafterArgs,
    /// Capacity of each session in tokens, prompt and answer together
    #[arg(short = 'c', long, default_value_t = 4096)]
    n_ctx: u32,
    /// Address to listen on. Anything but the loopback address lets other machines in
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Name of the model for clients; may be given several times [default: the file's name]
    #[arg(long)]
    alias: Vec<String>,
    /// Requests answered at the same time; each takes the memory of a session
    #[arg(long, default_value_t = 2)]
    parallel: usize,
    /// Requests that may wait; more are told to come back later
    #[arg(long, default_value_t = 16)]
    queue: usize,
    /// Memory for snapshots of earlier prompts, in MiB; 0 keeps none
    #[arg(long, default_value_t = 1024)]
    prefix_cache: u64,
    /// Largest body of a request, in KiB
    #[arg(long, default_value_t = 4096)]
    max_body: usize,
    /// Tokens generated if a request does not say [default: until the context is full]
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Have the model think before it answers if a request does not say
    #[arg(long)]
    thinking: bool,
    /// Key that clients must send; others on this machine can see it in the list of processes
    #[arg(long, conflicts_with = "api_key_file")]
    api_key: Option<String>,
    /// File that holds the key in its first line
    #[arg(long)]
    api_key_file: Option<PathBuf>,
}

impl Cli {
    fn api_key(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.api_key_file else { return Ok(self.api_key.clone()) };
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let key = text.lines().next().unwrap_or_default().trim().to_owned();
        if key.is_empty() {
            return Err(format!("{} holds no key", path.display()).into());
        }
        Ok(Some(key))
    }

    fn config(&self, file: &str) -> Result<Config, Failure> {
        let names = if self.alias.is_empty() { vec![file.to_owned()] } else { self.alias.clone() };
        Ok(Config {
            names,
            parallel: self.parallel,
            queue: self.queue,
            cache_bytes: self.prefix_cache << 20,
            max_body: self.max_body << 10,
            max_tokens: self.max_tokens,
            thinking: self.thinking,
            speculation: self.drafter.draft_max,
            api_key: self.api_key()?,
            local_only: self.host.is_loopback(),
            ..Config::default()
        })
    }
}

fn start(cli: &Cli) -> Result<Arc<App>, Failure> {
    let model = cli.model.load()?;
    let options: SessionOptions = cli.drafter.attach(&model, cli.model.session(cli.n_ctx))?;
    let plan = Session::plan(&model, &options)?;
    eprint!("{} sessions, each: {plan}", cli.parallel);
    let file = model.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(App::new(model, &options, cli.config(&file)?)?)
}

/// Waits for Ctrl-C, or for the system's wish to end.
async fn signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}

async fn listen(cli: &Cli, app: Arc<App>) -> Result<(), Failure> {
    let address = SocketAddr::new(cli.host, cli.port);
    let listener =
        TcpListener::bind(address).await.map_err(|e| format!("cannot listen on {address}: {e}"))?;
    // Scripts read the port from this line.
    println!("listening on http://{}", listener.local_addr()?);
    if !cli.host.is_loopback() && cli.api_key.is_none() && cli.api_key_file.is_none() {
        eprintln!("warning: other machines can use this server, and no key is needed (--api-key-file)");
    }
    let impatient = Arc::clone(&app);
    let shutdown = async move {
        signal().await;
        eprintln!("finishing the running answers; once more to stop them");
        tokio::spawn(async move {
            signal().await;
            impatient.pool().abort();
            // Streams have ended by then; what remains is connections that do not read.
            tokio::time::sleep(Duration::from_secs(2)).await;
            std::process::exit(1);
        });
    };
    serve(listener, Arc::clone(&app), shutdown).await?;
    Ok(())
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let app = start(cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(listen(cli, Arc::clone(&app)))?;
    app.pool().join();
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
