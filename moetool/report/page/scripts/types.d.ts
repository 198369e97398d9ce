// The payload as the page's Python makes it. Only the type checker reads this file.

export interface Layer {
  stack: string;
  layer: number;
  name: string;
  num_experts: number;
  top_k: number;
  num_tokens: number;
}

export interface Domain {
  name: string;
  prompts: number;
  tokens: number;
}

export type Known = number | null;

export interface LayerLoad {
  load: number[];
  prompts_choosing: number[] | null;
  num_prompts: Known;
  max_over_mean: Known;
  random_max_over_mean: Known;
  batch_max_over_mean: Known;
  random_batch_max_over_mean: Known;
  num_dead: number;
  random_num_dead: Known;
}

/** The lifts of one domain in one layer, with an entry for each expert. */
export interface Lifts {
  lift: Known[];
  low: Known[];
  high: Known[];
  /** 0 may be chance, 1 a discovery, 2 certain, 3 beyond vocabulary. */
  certainty: number[];
}

export interface Information {
  normalized: Known;
  p_value: Known;
  is_significant: boolean;
  conditional_normalized: Known;
}

/** Text, assignments, occurrences, lift, whether it is beyond chance. */
export type CharacteristicToken = [string, number, number, Known, boolean];

/** Two experts, count, lift, expected lift, lower and upper limit, whether it is significant. */
export type Pair = [number, number, number, Known, Known, Known, Known, boolean | null];

/** Expert, expert of the next layer, count, lift, probability given the first. */
export type TransitionPair = [number, number, number, Known, Known];

export interface Group {
  experts: number[];
  share: Known;
  expected_share: Known;
  random_share: Known;
}

export interface Transition {
  layer: number;
  pairs: TransitionPair[];
  hit_rate: Known;
  popularity: Known;
  random: Known;
}

export interface LayerTogetherness {
  num_pairs: number;
  num_above: number;
  num_below: number;
  pairs: Pair[];
  groups: Group[];
  /** Of each expert: a partner, its lift, and the lift that their loads explain. */
  partners: [number, Known, Known][][];
  /** Of pairs i < j, row by row. */
  matrix: { lift: Known[]; over_expected: Known[]; is_significant: (0 | 1)[] } | null;
  next: Transition | null;
}

export interface CapacityShare {
  factor: number;
  policy: string;
  tokens_per_batch: Known;
  dropped: Known;
  random_dropped: Known;
  by_position: Known[] | null;
  random_by_position: Known[];
}

export interface Method {
  batch_imbalance: Known;
  fan_out: Known;
  all_to_all_bytes_per_token: Known;
  random_batch_imbalance: Known;
  random_fan_out: Known;
}

export interface Placement {
  num_gpus: number;
  tokens_per_batch: Known;
  num_held_out: number;
  num_fitted: number;
  /** What is held out; null if nothing is. */
  unit: string | null;
  methods: Record<string, Method>;
}

export interface Touched {
  batch_size: number;
  num_batches: number;
  of: string;
  experts: Known;
  random: Known;
}

export interface Counts {
  total_parameters: number;
  active_parameters: Known;
  flops_per_token: Known;
  dense_flops_per_token: Known;
  flops_prompt_tokens: Known;
  active_share: Known;
  flops_ratio: Known;
}

export interface Agreement {
  num_decisions: number;
  overlap: Known;
  overlap_low: Known;
  overlap_high: Known;
  changed_decisions: Known;
  changed_decisions_low: Known;
  changed_decisions_high: Known;
  first_choice_flips: Known;
}

export interface Comparison {
  other: string;
  overall: Agreement;
  layers: ((Agreement & { random_changed_decisions: Known }) | null)[];
  groups: (Agreement & { group: string })[];
}

export interface SampledPrompt {
  id: string;
  domain: string;
  num_tokens: number;
  num_left_out: number;
}

export interface Sample {
  prompts: SampledPrompt[];
  num_tokens: number;
  texts: string[];
  text_of: number[] | null;
  stacks: string[];
  stack_of: number[] | null;
  new_tokens: number[];
  is_complete: boolean;
  has_ranks: boolean;
  /** For each layer of the page: choices of a token, and bytes of an expert's id. */
  shapes: [number, number][];
  has_weights: boolean;
  weight_scale: number[];
  /** For each layer of the page: index of its stack. */
  layer_stacks: number[];
}

export interface Payload {
  schema: string;
  title: string;
  subtitle: string[];
  by: string;
  verdict: string[];
  tiles: { label: string; value: string; note?: string }[];
  layers: Layer[];
  domains: Domain[];
  load: { layers: LayerLoad[] } | null;
  specialization: {
    num_permutations: number;
    information: Information[];
    /** By layer, then by domain. */
    lifts: Lifts[][];
  } | null;
  tokens: { min_count: number; experts: CharacteristicToken[][][] } | null;
  togetherness: {
    hit_rate: Known;
    popularity: Known;
    random: Known;
    layers: LayerTogetherness[];
  } | null;
  capacity: { batches: string; shares: CapacityShare[] } | null;
  placements: Placement[];
  touched: Touched[];
  counts: Counts | null;
  comparison: Comparison | null;
  sample: Sample | null;
  /** For each layer: a token and the experts that the other trace chose. */
  changed: number[][][];
  /** What the page opens with. */
  start: { layer: number; prompt: number };
  provenance: [string, string][];
  notes: { about: string; text: string }[];
  missing: Record<string, string>;
  left_out: string[];
}

export type Coloring = "expert" | "lift" | "confidence";

export interface State {
  /** Index into the payload's layers. */
  layer: number;
  expert: number | null;
  /** Index into the payload's domains. */
  domain: number | null;
  /** Index into the sample's tokens. */
  token: number | null;
  /** Index into the sample's prompts. */
  prompt: number;
  coloring: Coloring;
  /** Experts of the layer that have a colour in the reader. */
  pins: number[];
  theme: "auto" | "light" | "dark";
}

export interface Store {
  get(): State;
  set(changes: Partial<State>): void;
  subscribe(listener: (state: State, changed: Set<keyof State>) => void): void;
}

export interface Choice {
  expert: number;
  weight: number | null;
}

/** The decisions of the sample's tokens. */
export interface Decisions {
  /** Return what a layer chose for a token, the first choice first; empty if it made none. */
  choices(layer: number, token: number): Choice[];
  /** Return the tokens that chose an expert, those with the largest weight first. */
  tokensOf(layer: number, expert: number): { token: number; weight: number | null }[];
}

export interface Page {
  payload: Payload;
  decisions: Decisions | null;
  store: Store;
}

export interface Panel {
  element: HTMLElement;
  /** Draw again what depends on the parts of the state that changed. */
  update(state: State, changed: Set<keyof State>): void;
}
