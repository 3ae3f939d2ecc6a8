//! The shapes of the published models, and of a small one for tests, as numbers.

/// Shapes of one published model.
#[derive(Clone, Debug)]
pub struct Size {
    /// Name on the command line.
    pub name: &'static str,
    pub(super) n_layer: usize,
    pub(super) n_embd: u64,
    pub(super) n_head: u64,
    /// KV heads of sliding-window and full layers.
    pub(super) n_head_kv: (u64, u64),
    /// Every `period`-th layer is a full one.
    pub(super) period: usize,
    pub(super) n_ff: u64,
    /// Width on layers without keys and values of their own.
    pub(super) n_ff_shared: u64,
    pub(super) shared_kv: usize,
    pub(super) window: u32,
    pub(super) n_embd_per_layer: u64,
    /// Experts, experts used, width of one.
    pub(super) experts: (u64, u64, u64),
    /// Whether full layers take their values from the keys.
    pub(super) k_eq_v: bool,
    pub(super) n_ctx: u32,
}

/// The published sizes, and a small one for tests.
pub fn sizes() -> Vec<Size> {
    let base = Size {
        name: "31b",
        n_layer: 60,
        n_embd: 5376,
        n_head: 32,
        n_head_kv: (16, 4),
        period: 6,
        n_ff: 21504,
        n_ff_shared: 21504,
        shared_kv: 0,
        window: 1024,
        n_embd_per_layer: 0,
        experts: (0, 0, 0),
        k_eq_v: true,
        n_ctx: 262_144,
    };
    let small =
        Size { period: 6, window: 512, n_embd_per_layer: 256, k_eq_v: false, n_ctx: 131_072, ..base.clone() };
    vec![
        Size {
            name: "e2b",
            n_layer: 35,
            n_embd: 1536,
            n_head: 8,
            n_head_kv: (1, 1),
            period: 5,
            n_ff: 6144,
            n_ff_shared: 12288,
            shared_kv: 20,
            ..small.clone()
        },
        Size {
            name: "e4b",
            n_layer: 42,
            n_embd: 2560,
            n_head: 8,
            n_head_kv: (2, 2),
            n_ff: 10240,
            n_ff_shared: 10240,
            shared_kv: 18,
            ..small
        },
        Size {
            name: "12b",
            n_layer: 48,
            n_embd: 3840,
            n_head: 16,
            n_head_kv: (8, 1),
            n_ff: 15360,
            n_ff_shared: 15360,
            ..base.clone()
        },
        Size {
            name: "26b-a4b",
            n_layer: 30,
            n_embd: 2816,
            n_head: 16,
            n_head_kv: (8, 2),
            n_ff: 2112,
            n_ff_shared: 2112,
            experts: (128, 8, 704),
            ..base.clone()
        },
        base,
    ]
}

/// A model with heads of the true shapes, eight for each KV head, and little else: five sliding-window layers and a full one.
pub fn micro() -> Size {
    Size {
        name: "micro",
        n_layer: 6,
        n_embd: 256,
        n_head: 8,
        n_head_kv: (1, 1),
        period: 6,
        n_ff: 512,
        n_ff_shared: 512,
        shared_kv: 0,
        window: 512,
        n_embd_per_layer: 0,
        experts: (0, 0, 0),
        k_eq_v: true,
        n_ctx: 262_144,
    }
}
