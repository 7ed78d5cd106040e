"""How good dynamics models and world models are: figures with intervals, and the samples behind them."""
